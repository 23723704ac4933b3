"""Chaos: a pair of load balancers and 30 nodes under random faults and changes, compared with a model."""
