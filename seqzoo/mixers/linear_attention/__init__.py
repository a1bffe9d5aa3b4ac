"""Mixers with a matrix-valued memory; they stand on `seqzoo.kernels.linear_attention`."""
