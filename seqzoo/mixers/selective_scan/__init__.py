"""Mixers on Mamba's fused scan, `seqzoo.kernels.selective_scan`."""
