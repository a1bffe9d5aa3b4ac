"""Mixers with a matrix-valued state per head: calls of `seqzoo.kernels.linear_attention`."""
