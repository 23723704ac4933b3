"""The state directory: membership, spool, lock, history, and atomic file replacement."""
