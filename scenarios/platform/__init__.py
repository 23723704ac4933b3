"""The machines of examples/data-platform, their services and the load, for `make test-platform`."""
