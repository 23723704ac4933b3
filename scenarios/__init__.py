"""Scenarios with real programs. Each has its own make target, installs packages and takes minutes."""
