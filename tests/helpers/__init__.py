"""What tests share: real programs, builders, clients."""
