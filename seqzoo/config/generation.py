"""The settings of `train.py generate`."""

from pydantic import Field, model_validator

from seqzoo.config.base import Section


class Generation(Section):
    """Settings of text generation from a trained model."""

    prompt: str = ""
    """Text to continue, from the start of a document; may be empty. For a task without text, token ids: "1 2 3"."""
    max_new_tokens: int = Field(256, ge=1)
    """Largest number of new tokens; the end of the document comes first if it is generated."""
    temperature: float = Field(1.0, ge=0)
    """Divisor of the logits before a token is drawn; 0: greedy decoding, the most probable token."""
    top_k: int | None = Field(None, ge=1)
    """Draw from this many most probable tokens; None: from all."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Draw from the fewest most probable tokens whose probabilities add up to this; None: from all."""
    seed: int | None = None
    """Seed of the draws; None: 0."""
    prefill_chunk: int = Field(512, ge=1)
    """Tokens of the prompt per prefill call; fewer need less memory."""
    block: int = Field(4, ge=1)
    """Tokens generated between two writes; more are faster, and appear in bursts."""

    @model_validator(mode="after")
    def _greedy_has_no_sampling_settings(self):
        if self.temperature == 0 and (given := [name for name in ("top_k", "top_p", "seed") if getattr(self, name) is not None]):
            raise ValueError(f"temperature=0 is greedy decoding: wanted no {', '.join(given)}, or a temperature above 0")
        return self
