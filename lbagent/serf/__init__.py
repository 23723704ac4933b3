"""All that knows Serf."""
