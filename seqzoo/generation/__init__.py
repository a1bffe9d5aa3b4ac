"""Generation: chunked prefill of prompts, then decoding in one compiled loop. `seqzoo.generate` calls this package."""

from seqzoo.generation.generate import Generated, generate

__all__ = ["Generated", "generate"]
