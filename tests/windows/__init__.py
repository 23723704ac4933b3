"""Tests of the files in windows/."""
