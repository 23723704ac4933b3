"""What the managed lines are to be, and what a change would do to a service."""
