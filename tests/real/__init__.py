"""Tests with real HAProxy and real Serf."""
