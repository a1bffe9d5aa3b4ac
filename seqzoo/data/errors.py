"""The errors of this package."""


class DataError(ValueError):
    """A wrong source, tokenizer or shard. The message names it, the problem and a solution."""


class UnreadableError(DataError):
    """A file that the system does not let us read now: the same call may succeed later."""
