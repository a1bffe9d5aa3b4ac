"""Defaults that depend on platform and sizes: the implementation and the chunk size."""

from jax import Array

from ..common import implementations
from .tuning import TUNING


def kind(log_decay: Array | None, value_log_decay: Array | None, a: Array | None) -> str:
    """The kind of transition, a key of the table."""
    if a is not None:
        return "low rank"
    if value_log_decay is not None:
        return "value"
    return "none" if log_decay is None else "channel" if log_decay.ndim == 4 else "head"


def implementation(length: int, kind: str, state_shape: tuple[int, int, int, int]) -> implementations.Choice:
    """The choice for `implementation=None`: the fastest at the nearest sizes; a single token is too small for matrix products."""
    batch, heads, k, v = state_shape
    if length == 1 or not batch * heads * k * v:
        return implementations.Choice("recurrent", "recurrent")
    return implementations.fastest(TUNING, kind, (batch * heads, k, v), "chunkwise")


def chunk_size(choice: implementations.Choice, requested: int | None, length: int) -> int:
    """Tokens in a chunk, no more than `length` needs. Raises ValueError for a `requested` size that the choice cannot take."""
    halving = [name for name in choice if "chunkwise" in name]
    size = requested
    if size is None:
        size = 64 if halving and not implementations.on_cpu() else 32
    elif "reference" in choice:
        raise ValueError(f'chunk_size={size!r} means nothing to implementation="reference", wanted None')
    elif not isinstance(size, int) or size < 1:
        raise ValueError(f"chunk_size={size!r}, wanted a positive int or None")
    if halving and size & (size - 1):
        raise ValueError(f"chunk_size={size!r}, wanted a power of 2: implementation={halving[0]!r} halves chunks")
    return min(size, 1 << max(length - 1, 0).bit_length())
