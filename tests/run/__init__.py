"""Tests of lbagent/run."""
