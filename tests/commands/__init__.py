"""Tests of lbagent/commands."""
