"""lbagent keeps haproxy.cfg in step with what Serf knows."""

__version__ = "0.1.0"
