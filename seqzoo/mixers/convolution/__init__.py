"""Convolution mixers, which see the last few tokens; they use `seqzoo.kernels.convolution`."""
