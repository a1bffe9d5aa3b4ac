"""Attention mixers: a score for every pair of tokens, and a KV cache; they stand on `seqzoo.kernels.attention`."""
