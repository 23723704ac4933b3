"""Code that several tests share: real programs, builders, clients."""
