"""All that touches the machine: disk, locks, state, processes, log."""
