"""How parameters change: update rules, learning-rate schedules, gradient accumulation, skipped steps, sharding of their state."""
