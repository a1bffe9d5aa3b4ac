"""Convolution mixers, which see a few tokens back; they stand on `seqzoo.kernels.convolution`."""
