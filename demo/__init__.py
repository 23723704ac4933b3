"""`make demo`: a load balancer and three web nodes on loopback, with real Serf and HAProxy, for half a minute."""
