"""Whole scenarios run for real, each by a make target of its own: they install much and take minutes."""
