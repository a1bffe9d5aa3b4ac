"""Mixers that score every pair of tokens; they stand on `seqzoo.kernels.attention`."""
