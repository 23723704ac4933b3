"""Planning: the managed lines that haproxy.cfg should have, as a pure function of text, roles and membership."""
