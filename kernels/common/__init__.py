"""Parts that the ops share, and `explain`: the implementation and the sharding that each op inside a function chooses."""

from seqzoo.kernels.common.implementations import explain

__all__ = ["explain"]
