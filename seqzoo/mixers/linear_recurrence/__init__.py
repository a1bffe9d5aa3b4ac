"""Mixers whose memory is a vector of cells that do not see each other; they stand on `seqzoo.kernels.linear_recurrence`."""
