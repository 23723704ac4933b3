"""roles.yml: its keys, its loader, its values, and a cached copy."""
