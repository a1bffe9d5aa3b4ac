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


def choices(length: int, kind: str, state_shape: tuple[int, int, int, int]) -> list[implementations.Choice]:
    """The choices for `implementation=None`: the fastest at the nearest sizes, if it can; for a single token the recurrent form."""
    batch, heads, k, v = state_shape
    recurrent = implementations.Choice("recurrent", "recurrent")
    if length == 1 or not batch * heads * k * v:
        return [recurrent]
    return [implementations.fastest(TUNING, kind, (batch * heads, k, v), "chunkwise"), recurrent]


def chunk_size(choice: implementations.Choice, requested: int | None, length: int) -> int:
    """Tokens in a chunk, no more than `length` needs. Raises NotImplementedError for a size that the choice cannot take."""
    chunkwise = any("chunkwise" in name for name in choice)
    size = requested
    if size is None:
        size = 64 if chunkwise and not implementations.on_cpu() else 32
    elif not isinstance(size, int) or size < 1:
        raise ValueError(f"chunk_size={size!r}, wanted a positive int or None")
    elif "reference" in choice:
        raise NotImplementedError(f"chunk_size={size!r}, wanted None: it has no chunks")
    elif chunkwise and size & (size - 1):
        raise NotImplementedError(f"chunk_size={size!r}, wanted a power of 2: chunks are halved")
    return min(size, 1 << max(length - 1, 0).bit_length())
