"""Recurrent mixers: gated hidden units that decay elementwise; they use `seqzoo.kernels.linear_recurrence`."""
