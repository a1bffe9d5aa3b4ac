"""Attention mixers: a score for every pair of tokens, and a KV cache; they use `seqzoo.kernels.attention`."""
