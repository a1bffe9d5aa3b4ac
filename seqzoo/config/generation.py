"""The settings of `train.py generate`."""

from typing import Annotated

from pydantic import Field, model_validator

from seqzoo.config.base import Section
from seqzoo.specs import Length, NonNegative, Seed, Size


class Generation(Section):
    """Settings of text generation from a trained model."""

    prompt: str = ""
    """Text to continue, from the start of a document; may be empty. For a task without text, token ids: "1 2 3"."""
    max_new_tokens: Length = 256
    """Largest number of new tokens; the end of the document comes first if it is generated."""
    temperature: NonNegative = 1.0
    """Divisor of the logits before a token is drawn; 0: greedy decoding, the most probable token."""
    top_k: Length | None = None
    """Draw from this many most probable tokens; None: from all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw from the fewest most probable tokens whose probabilities add up to this; None: from all."""
    seed: Seed | None = None
    """Seed of the draws; None: 0."""
    prefill_chunk: Length = 512
    """Tokens of the prompt per prefill call; fewer need less memory."""
    block: Size = 4
    """Tokens generated between two writes; more are faster, and appear in bursts."""

    @model_validator(mode="after")
    def _greedy_has_no_sampling_settings(self):
        if self.temperature == 0 and (given := [name for name in ("top_k", "top_p", "seed") if getattr(self, name) is not None]):
            raise ValueError(f"temperature=0 is greedy decoding: wanted no {', '.join(given)}, or a temperature above 0")
        return self
