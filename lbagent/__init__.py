"""lbagent keeps the server lines of HAProxy in step with a Serf cluster."""

__version__ = "0.1.0"
