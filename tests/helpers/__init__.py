"""Shared by the tests: real programs, builders, clients."""
