"""Membership: the members of the cluster, their statuses and their pauses."""
