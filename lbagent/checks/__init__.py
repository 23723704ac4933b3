"""`lbagent check`: findings about everything that lbagent depends on, and trials of candidate texts of haproxy.cfg."""
