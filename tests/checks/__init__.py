"""Tests of lbagent/checks."""
