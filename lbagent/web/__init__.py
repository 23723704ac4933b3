"""The web page: what the daemon publishes, for browsers, monitors and programs. Needs the extra `lbagent[web]`."""
