"""Runs: from stored events to membership, plan and haproxy.cfg, and to the HAProxy that loads it."""
