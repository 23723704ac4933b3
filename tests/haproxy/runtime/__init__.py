"""Tests of lbagent/haproxy/runtime."""
