"""Time mixing of the RWKV models."""
