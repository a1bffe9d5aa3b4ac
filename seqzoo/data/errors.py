"""The error of this package."""


class DataError(ValueError):
    """A wrong source, tokenizer or shard. The message names it, the problem and a solution."""
