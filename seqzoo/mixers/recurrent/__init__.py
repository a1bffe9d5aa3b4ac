"""Recurrent mixers: gated hidden units that decay elementwise; they stand on `seqzoo.kernels.linear_recurrence`."""
