"""The load test: a pair of load balancers that change ten times a second under traffic that hides nothing."""
