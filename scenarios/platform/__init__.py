"""What `make test-platform` runs: the machines of examples/data-platform, their services, and its load."""
