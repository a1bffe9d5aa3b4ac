"""LanguageModel: embedding, stack of blocks and head; it obeys the same law as its mixers."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from seqzoo.kernels.common import segments
from seqzoo.model.block import AnySpec, BlockSettings, Norm, NormPosition
from seqzoo.model.sharding import constrain
from seqzoo.model.stack import Remat, Stack, StackMode, StackState
from seqzoo.nn import Linear, dropout, torch_uniform
from seqzoo.nn.layer import floating_dtype
from seqzoo.specs import Blocks, Length, Positive, Rate, Size, checked


class ModelState(NamedTuple):
    """State of a LanguageModel."""

    stack: StackState
    position: Array  # [b] int32, tokens of the current document so far
    segment: Array  # [b] int32, the last document id seen

    def row_axes(self) -> "ModelState":
        """The batch axis of each leaf, as a tree of the same structure: 1 where layers are stacked, else 0."""
        axes = jax.tree.map(lambda _: 0, self)
        if isinstance(self.stack.scanned, tuple):
            return axes
        return axes._replace(stack=axes.stack._replace(scanned=jax.tree.map(lambda _: 1, self.stack.scanned)))


class LanguageModel(nnx.Module):
    """Embedding, stack of blocks, norm and head: tokens to logits. `model(tokens, state=...)` obeys the mixers' law.

    Embeddings are drawn from N(0, 1/d_model). The logits of a tied head then start at a scale of about 1, and the embeddings do not
    dominate the outputs of the blocks in the residual stream, which recall over two layers needs.

    Args:
      vocab_size: number of token ids.
      d_model: width of the residual stream.
      layers: mixers, cycled over depth, as spec strings or typed settings: ("mamba2", "mamba2", "softmax(window=256)") is a hybrid.
      depth: number of blocks.
      channel: the channel mixer: "swiglu", "geglu", "gelu", "rwkv" or "none", with settings.
      norm: "rms" or "layer", in all blocks and before the head.
      norm_eps: added to the mean square (the variance) in these norms.
      norm_position: "pre", on the input of each branch of a block, or "post", on its output (OLMo team 2025, arXiv:2501.00656); one
        for all layers, or one for each of `layers`.
      normed_residual: adds a branch to its own input, the norm's output, instead of to the residual stream before the norm.
      residual_scale: factor on the residual stream where a branch is added to it.
      embedding_norm: a norm after the embedding.
      embedding_scale: factor on the embedding of a token; it does not act on a tied head.
      tie_embeddings: the head is the embedding, transposed.
      pad_vocab: embedding and head have as many rows as the next multiple of this, so that they divide over a mesh. Rows without a
        token start at zero, are in no logits and get no gradient.
      learned_positions: None, or the number of positions (from 0 in each document) that have a learned embedding, added to the
        token's. A later position gives NaN, never another position's embedding.
      dropout: rate on each branch before it joins the residual stream; active when a key is given.
      embedding_dropout: rate on the embedding; None: as `dropout`.
      stack: "scan" or "loop" over the layers; the same parameters and numbers.
      remat: "none", "full" or "dots": what the backward pass of a block recomputes: nothing, all, or all but matrix products.
      logits_soft_cap: None, or c > 0: logits become c tanh(logits / c), within (-c, c).
      dtype: of the computation; None is param_dtype. Logits are at least float32.
      residual_dtype: of the residual stream, if wider than the computation's; None is the computation's.
      param_dtype: of the parameters.
      rngs: source of the initial parameters.
    Raises:
      SpecError: a setting out of its range, or a layer that is unknown. ValueError: settings that do not fit each other.
    """

    @checked(skip=("layers", "channel", "dtype", "residual_dtype", "param_dtype", "rngs"))
    def __init__(
        self,
        vocab_size: Length,
        d_model: Size,
        *,
        layers: AnySpec | Sequence[AnySpec] = ("softmax",),
        depth: Blocks = 2,
        channel: AnySpec = "swiglu",
        norm: Norm = "rms",
        norm_eps: Positive = 1e-5,
        norm_position: NormPosition | tuple[NormPosition, ...] = "pre",
        normed_residual: bool = False,
        residual_scale: Positive = 1.0,
        embedding_norm: bool = False,
        embedding_scale: Positive = 1.0,
        tie_embeddings: bool = True,
        pad_vocab: Size = 1,
        learned_positions: Length | None = None,
        dropout: Rate = 0.0,
        embedding_dropout: Rate | None = None,
        stack: StackMode = "scan",
        remat: Remat = "none",
        logits_soft_cap: Positive | None = None,
        dtype: DTypeLike | None = None,
        residual_dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.vocab_size, self.d_model = vocab_size, d_model
        self.vocab_rows = -(-vocab_size // pad_vocab) * pad_vocab  # of embedding and head
        floating = functools.partial(floating_dtype, "LanguageModel")
        param_dtype = floating("param_dtype", param_dtype)
        dtype = None if dtype is None else floating("dtype", dtype)
        self.dtype = self.residual_dtype = param_dtype if dtype is None else dtype
        if residual_dtype is not None:  # a layer without a dtype would compute in that of its input, the residual stream
            dtype, self.residual_dtype = (
                self.dtype,
                jnp.promote_types(self.dtype, floating("residual_dtype", residual_dtype)),
            )
        settings = BlockSettings(channel, norm, norm_eps, normed_residual, residual_scale, dropout, dtype, param_dtype)

        normal = jax.nn.initializers.normal(d_model**-0.5)

        def make_embedding(count: int, axis: str | None, rows: int | None = None) -> nnx.Param[Array]:
            drawn = normal(rngs.params(), (count, d_model), param_dtype)
            return nnx.Param(drawn if rows is None else _padded(drawn, (rows, d_model)), axes=(axis, "embed"))

        def init_head(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            return _padded(torch_uniform(key, (d_model, vocab_size), dtype), shape)

        self.embedding = make_embedding(vocab_size, "vocab", self.vocab_rows)
        self.position_embedding = make_embedding(learned_positions, None) if learned_positions else None
        self.stack = Stack(d_model, layers, settings, depth=depth, norm_position=norm_position, stack=stack, remat=remat, rngs=rngs)
        self.norm = settings.make_norm(d_model, rngs)
        self.embedding_norm = settings.make_norm(d_model, rngs) if embedding_norm else None
        wide = self.vocab_rows
        make_head = lambda: Linear(d_model, wide, axes=("embed", "vocab"), init=init_head, param_dtype=param_dtype, rngs=rngs)
        self.head = None if tie_embeddings else make_head()
        self.embedding_scale, self.logits_soft_cap = embedding_scale, logits_soft_cap
        self.embedding_dropout = dropout if embedding_dropout is None else embedding_dropout

    def __call__(
        self,
        tokens: Array,
        *,
        state: ModelState | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, ModelState | None]:
        """tokens [b, t] int32 -> (logits [b, t, vocab_size] in promote(float32, dtype), state or None). Arguments as a mixer's."""
        x, state = self.hidden(tokens, state=state, segment_ids=segment_ids, positions=positions, key=key)
        return self.attend(x), state

    def hidden(
        self,
        tokens: Array,
        *,
        state: ModelState | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, ModelState | None]:
        """`__call__` up to the head: (x [b, t, d_model] after the last norm, state or None); `attend(x)` gives the logits."""
        embedding_key, stack_key = (None, None) if key is None else jax.random.split(key)
        batch, length = tokens.shape
        stack_state, position, segment = (None, _zeros(batch), None) if state is None else state
        default_positions, position = segments.positions(segment_ids, segment, position, length)
        rows = tokens if self.vocab_rows == self.vocab_size else self._rows(tokens)
        # Gathered over fsdp before the lookup: rows of tokens and columns of the table share that axis.
        x = jnp.take(constrain(self.embedding[...], "h ."), rows, axis=0).astype(self.dtype)
        x = x if self.embedding_scale == 1 else x * self.embedding_scale
        if self.position_embedding is not None:
            index = default_positions if positions is None else positions
            if segment_ids is not None:
                index = jnp.where(segment_ids != 0, index, 0)
            table = constrain(self.position_embedding[...], ". .")
            x = x + jnp.take(table, index, axis=0, mode="fill", fill_value=jnp.nan).astype(self.dtype)
        x = x if self.embedding_norm is None else self.embedding_norm(x)
        x = constrain(dropout(x, self.embedding_dropout, embedding_key), "b t .").astype(self.residual_dtype)
        x, stack_state = self.stack(x, state=stack_state, segment_ids=segment_ids, positions=positions, key=stack_key)
        x = self.norm(x)
        if stack_state is None or segment is None:
            return x, None
        return x, ModelState(stack_state, position, segments.last_segment(segment_ids, segment))

    def _rows(self, tokens: Array) -> Array:
        """Rows of the embedding; ids outside the vocabulary are outside the rows, and so give NaN with padded rows as without."""
        tokens = jnp.where(tokens < 0, tokens + self.vocab_size, tokens)  # as `jnp.take` counts
        return jnp.where((tokens < 0) | (tokens >= self.vocab_size), self.vocab_rows, tokens)

    def attend(self, x: Array) -> Array:
        """The head: [..., d_model] -> logits [..., vocab_size], accumulated in float32 or better."""
        return self._logits(x)[..., : self.vocab_size]

    def attend_rows(self, x: Array) -> Array:
        """`attend` with a logit for every row of the head, -inf for those that pad it: it divides over a mesh as the head does."""
        logits = self._logits(x)
        if self.vocab_rows == self.vocab_size:
            return logits
        return jnp.where(jnp.arange(self.vocab_rows) < self.vocab_size, logits, -jnp.inf)

    def _logits(self, x: Array) -> Array:
        w = self.embedding[...].T if self.head is None else self.head.w[...]
        x = x.astype(self.dtype)
        logits = jnp.matmul(x, w.astype(x.dtype), preferred_element_type=jnp.result_type(x, jnp.float32))
        cap = self.logits_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def init_state(self, batch: int, max_length: int | None = None, dtype: DTypeLike | None = None) -> ModelState:
        """The empty state of `batch` rows; `max_length` bounds the caches that grow with a document."""
        dtype = self.dtype if dtype is None else dtype
        return ModelState(self.stack.init_state(batch, max_length, dtype), _zeros(batch), _zeros(batch))

    def flops(self, batch: int, length: int) -> int:
        """Forward model FLOPs: the blocks' and the head's."""
        return self.stack.flops(batch, length) + 2 * batch * length * self.d_model * self.vocab_size


def _padded(x: Array, shape: tuple[int, ...]) -> Array:
    """x with zeros at the end of each axis, up to a shape."""
    return jnp.pad(x, [(0, wanted - size) for size, wanted in zip(x.shape, shape, strict=True)])


def _zeros(batch: int) -> Array:
    return jnp.zeros((batch,), jnp.int32)
