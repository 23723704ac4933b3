"""Tests of lbagent/membership."""
