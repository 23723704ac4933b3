"""Tests of lbagent/status."""
