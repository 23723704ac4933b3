"""Tests of lbagent/roles."""
