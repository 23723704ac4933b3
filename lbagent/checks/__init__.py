"""What is checked before it takes effect: candidate texts of haproxy.cfg, and the lines that roles.yml makes."""
