"""`lbagent check`: findings about everything that lbagent depends on."""
