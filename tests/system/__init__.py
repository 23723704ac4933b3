"""Tests of lbagent/system."""
