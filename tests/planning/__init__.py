"""Tests of lbagent/planning."""
