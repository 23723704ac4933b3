"""Tests of the packages and units."""
