"""Tests of lbagent/serf."""
