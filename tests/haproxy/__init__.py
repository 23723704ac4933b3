"""Tests of lbagent/haproxy."""
