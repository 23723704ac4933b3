"""All that knows HAProxy."""
