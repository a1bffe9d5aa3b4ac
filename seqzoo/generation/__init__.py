"""Text from a model: prompts read in chunks, then token after token in one compiled loop. `seqzoo.generate` is this package's."""

from seqzoo.generation.generate import Generated, generate

__all__ = ["Generated", "generate"]
