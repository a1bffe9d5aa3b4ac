"""The section `model`: the network."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from seqzoo import channels, mixers
from seqzoo.config.base import Layers, Section, as_text, check_if_registered, one_word
from seqzoo.model import Norm, NormPosition, Remat, StackMode
from seqzoo.specs import Blocks, Length, Positive, Rate, Settings, Size, Spec, split

DType = Literal["float32", "bfloat16", "float16"]


def _one_or_many(text: str) -> str | tuple[str, ...]:
    """ "pre" as it is; "pre, post" as a tuple."""
    positions = split(text)
    return positions[0] if len(positions) == 1 else positions


NormPositions = Annotated[
    NormPosition | tuple[NormPosition, ...],
    one_word(_one_or_many, lambda value: value if isinstance(value, str) else ", ".join(value), "{pre,post}[,...]"),
]


class Model(Section):
    """The network: an embedding, a stack of blocks and a head. Its vocabulary comes from the task."""

    layers: Layers = ("softmax",)
    """Mixers, cycled over depth, separated by commas: "mamba2, softmax(window=256, heads=2)"."""
    depth: Blocks = 2
    """Number of blocks."""
    d_model: Size = 64
    """Width of the residual stream."""
    channel: str = "swiglu"
    """Channel mixer of every block: "swiglu", "geglu", "gelu", "rwkv" or "none", with settings as in "gelu(expansion=4)"."""
    norm: Norm = "rms"
    """Normalisation in each half of a block, and before the head."""
    norm_eps: Positive = 1e-5
    """Epsilon that these norms add to the mean square (layer norm: the variance)."""
    norm_position: NormPositions = "pre"
    """Norms on the input ("pre") or on the output ("post") of each half of a block; one for all layers, or one for each of
    `layers`: "pre, post"."""
    normed_residual: bool = False
    """Add each half of a block to its own input, the norm's output, instead of to the residual stream before the norm."""
    residual_scale: Positive = 1.0
    """Factor on the residual stream where a half of a block is added to it."""
    embedding_norm: bool = False
    """A norm after the embedding."""
    embedding_scale: Positive = 1.0
    """Factor on the embedding of a token; it does not act on a tied head."""
    tie_embeddings: bool = True
    """The head is the embedding, transposed."""
    pad_vocab: Size = 1
    """Embedding and head have as many rows as the next multiple of this, so that they divide over mesh.tensor: 264 rows for the 257
    ids of a byte model and 8. Loss, logits and samples are the same; rows without a token get no gradient."""
    learned_positions: Length | None = None
    """Number of positions that have a learned embedding; None: no learned positions."""
    dropout: Rate = 0.0
    """Dropout rate on each branch, and on the embedding unless that has its own."""
    embedding_dropout: Rate | None = None
    """Dropout rate on the embedding; None: as `dropout`."""
    logits_soft_cap: Positive | None = None
    """Logits become c tanh(logits / c) for this c, within (-c, c); None: no cap."""
    stack: StackMode = "scan"
    """Run the layers by lax.scan (compile time independent of depth) or by a loop; the numbers are the same."""
    remat: Remat = "none"
    """Activation checkpointing (rematerialisation): recompute in the backward pass nothing, whole blocks, or all but matrix
    products."""
    dtype: DType | None = None
    """Dtype of the computation; None: that of the parameters. Recurrent states are float32 or better in any case."""
    residual_dtype: DType | None = None
    """Dtype of the residual stream, if wider than the computation's; None: that of the computation."""
    param_dtype: DType = "float32"
    """Dtype of the parameters, and so of the optimizer's moments."""
    init_from: str | None = Field(default=None, min_length=1)
    """Folder of a model to start from, instead of random parameters: of a run, or of a checkpoint that seqzoo.convert reads.
    Parameters are matched by name. Read once, before the first step; None: random."""

    @field_validator("layers", mode="before")
    @classmethod
    def _as_texts(cls, value):
        if isinstance(value, str):
            return split(value)
        if isinstance(value, Spec | Settings):
            return (str(value),)
        return tuple(map(as_text, value)) if isinstance(value, list | tuple) else value

    @field_validator("layers")
    @classmethod
    def _known_mixers(cls, value):
        if not value:
            raise ValueError("no mixer is named; wanted at least one, such as 'softmax'")
        return tuple(check_if_registered(mixers.registry, spec) for spec in value)

    @field_validator("channel", mode="before")
    @classmethod
    def _channel_as_text(cls, value):
        return as_text(value)

    @field_validator("channel")
    @classmethod
    def _known_channel(cls, value):
        return check_if_registered(channels.registry, value)

    @model_validator(mode="after")
    def _norms_fit_layers(self):
        position, layers = self.norm_position, self.layers
        if not isinstance(position, str) and len(position) != len(layers):
            raise ValueError(f"norm_position={position!r}: wanted one, or one for each of {len(layers)} layer specs")
        if self.normed_residual and "post" in (position, *position):
            raise ValueError(f"normed_residual=True with norm_position={position!r}: wanted norm_position='pre'")
        return self
