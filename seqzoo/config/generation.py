"""The settings of `train.py generate`."""

from pydantic import Field, model_validator

from seqzoo.config.base import Section


class Generation(Section):
    """How a trained model goes on from a prompt."""

    prompt: str = ""
    """Text to go on from; it begins a document. Empty: so does the answer. Where the task has no text, token ids: "1 2 3"."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens of the answer, unless the document ends before."""
    temperature: float = Field(1.0, ge=0)
    """What logits are divided by before a token is drawn; 0 draws nothing, and takes the most probable one."""
    top_k: int | None = Field(None, ge=1)
    """Draw from this many most probable tokens; None: from all."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Draw from the fewest most probable tokens whose probabilities add up to this; None: from all."""
    seed: int | None = None
    """Of the draws; None: 0."""
    prefill_chunk: int = Field(512, ge=1)
    """Tokens of the prompt read at a time; fewer need less memory."""
    block: int = Field(4, ge=1)
    """Tokens of the answer between two looks; more are faster, and come in bursts."""

    @model_validator(mode="after")
    def _nothing_to_draw(self):
        if self.temperature == 0 and (given := [name for name in ("top_k", "top_p", "seed") if getattr(self, name) is not None]):
            raise ValueError(f"temperature is 0, which takes the most probable token: wanted no {', '.join(given)}, or more than 0")
        return self
