"""The verb `watch`: the daemon that applies stored events, watches for edits, and syncs."""
