"""The one error of the data side."""


class DataError(ValueError):
    """A source, a tokenizer or a shard is not what it should be. The message names it, says what was found and what to do."""
