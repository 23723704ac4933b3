"""What `check` knows: judges, which are pure, and the few rooms that look at the machine for them."""
