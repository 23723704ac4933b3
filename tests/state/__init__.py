"""Tests of lbagent/state."""
