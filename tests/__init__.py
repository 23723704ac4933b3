"""Promises of lbagent, room by room."""
