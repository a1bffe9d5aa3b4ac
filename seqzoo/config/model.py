"""The section `model`: the network."""

from typing import Literal

from pydantic import Field, field_validator

from seqzoo import channels, mixers
from seqzoo.config.base import Layers, Section
from seqzoo.model import Norm, Remat, StackMode
from seqzoo.specs import split

DType = Literal["float32", "bfloat16", "float16"]


class Model(Section):
    """The network: an embedding, a stack of blocks and a head. Its vocabulary comes from the task."""

    layers: Layers = ("softmax",)
    """Mixers, cycled over depth, separated by commas: "mamba2, softmax(window=256, heads=2)"."""
    depth: int = Field(2, ge=1)
    """Number of blocks."""
    d_model: int = Field(64, ge=1)
    """Width of the residual stream."""
    channel: str = "swiglu"
    """Channel mixer of every block: "swiglu", "geglu", "gelu", "rwkv" or "none", with settings as in "gelu(expansion=4)"."""
    norm: Norm = "rms"
    """Normalisation before each half of a block, and before the head."""
    tie_embeddings: bool = True
    """The head is the embedding, transposed."""
    learned_positions: int | None = Field(None, ge=1)
    """How many positions get a learned embedding; None: no learned positions."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate on each branch, and on the embedding unless that has its own."""
    embedding_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout rate on the embedding; None: as `dropout`."""
    stack: StackMode = "scan"
    """Run the layers by lax.scan (compile time independent of depth) or by a loop; the numbers are the same."""
    remat: Remat = "none"
    """What the backward pass recomputes instead of keeping: nothing, all of a block, or all but its matrix products."""
    dtype: DType | None = None
    """Of the computation; None: that of the parameters. Recurrent states are float32 or better in any case."""
    param_dtype: DType = "float32"
    """Of the parameters, and so of the optimizer's moments."""

    @field_validator("layers", mode="before")
    @classmethod
    def _one_or_many(cls, value):
        return split(value) if isinstance(value, str) else value

    @field_validator("layers")
    @classmethod
    def _known_mixers(cls, value):
        if not value:
            raise ValueError("no mixer is named; wanted at least one, such as 'softmax'")
        return tuple(str(mixers.registry.check(spec)) for spec in value)

    @field_validator("channel")
    @classmethod
    def _known_channel(cls, value):
        return str(channels.registry.check(value))
