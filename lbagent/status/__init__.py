"""`lbagent status`: collect what is known of this load balancer, and show it."""
