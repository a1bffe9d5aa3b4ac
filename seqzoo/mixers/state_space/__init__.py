"""State-space mixers: linear systems with a diagonal transition, time-invariant (S4D, S5, LRU, EMA) or selective (Mamba)."""
