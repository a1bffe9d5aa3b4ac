"""Stack and LanguageModel: the one backbone on which every mixer stands, and which obeys the same law."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.blocks import NORMS, Period
from seqzoo.kernels.common import documents
from seqzoo.nn import Linear, dropout
from seqzoo.registry import choice
from seqzoo.sharding import constrain

REMAT = {  # what the backward pass may keep of a block
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
STACKS = ("scan", "loop")


class StackState(NamedTuple):
    """The state of a Stack: `periods` has a leading axis over the periods, `rest` has none; either is () where there is none."""

    periods: Any  # or a tuple, see `apart`
    rest: Any

    def apart(self) -> "StackState":
        """The same in a tuple of one state for each period. A Stack takes that too, runs a loop, and returns such a tuple.

        A loop over tokens then changes each cache in its place, while `lax.scan` would write a new stack of them at every token. It
        costs what the scan over layers spares: compile time that grows with depth, and in such a loop XLA holds a copy of the
        parameters, layer by layer.
        """
        leaves = jax.tree.leaves(self.periods)
        count = leaves[0].shape[0] if leaves else 0
        return self._replace(periods=tuple(_at(i, self.periods) for i in range(count)))


class Stack(nnx.Module):
    """`depth` blocks whose mixers cycle through `layers`.

    Whole periods are stacked along a leading parameter axis and run by `lax.scan` (compile time independent of depth), or by a loop
    over the same parameters, which gives the same numbers; what is left of the last period follows in a loop.
    """

    def __init__(self, d_model, *, layers, depth, norm_at="input", stack="scan", remat="none", rngs, **block):
        layers = (layers,) if isinstance(layers, str) else tuple(layers)
        if depth < 1 or not layers:
            raise ValueError(
                f"depth={depth} with {len(layers)} layer specs: wanted at least one of each (model.depth, model.layers)"
            )
        norm_at = (norm_at,) * len(layers) if isinstance(norm_at, str) else tuple(norm_at)
        if len(norm_at) != len(layers):
            raise ValueError(f"norm_at={norm_at!r}: wanted one place, or one for each of {len(layers)} layer specs")
        self.stack = choice("stack", stack, STACKS)
        self.remat = choice("remat", remat, tuple(REMAT))
        self.count, left = divmod(depth, len(layers))

        def period(key, index):
            return Period(d_model, layers, norm_at=norm_at, first=index * len(layers), count=depth, rngs=nnx.Rngs(key), **block)

        keys, indices = jax.random.split(rngs.params(), self.count), jnp.arange(self.count, dtype=jnp.int32)
        self.periods = jax.vmap(period)(keys, indices) if self.count else None
        rest = {"norm_at": norm_at[:left], "first": depth - left, "count": depth, "rngs": rngs, **block}
        self.rest = Period(d_model, layers[:left], **rest) if left else None

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        """[b, t, d_model] -> ([b, t, d_model], StackState or None)."""
        state = StackState(None, None) if state is None else state
        keys = (None, None) if key is None else jax.random.split(key)

        def run(period, carry, state, key):
            *carry, state = period(*carry, state=state, segment_ids=segment_ids, positions=positions, key=key)
            return tuple(carry), state

        if REMAT[self.remat] is not None:
            run = jax.checkpoint(run, policy=REMAT[self.remat])
        periods, rest = state
        streams = {}
        for period in (self.periods, self.rest):
            streams |= {} if period is None else period.init_streams(x)
        carry = x, streams
        if self.periods is not None:
            per_period = None if key is None else jax.random.split(keys[0], self.count)
            step = lambda carry, xs: run(xs[0], carry, xs[1], xs[2])
            if isinstance(periods, tuple):
                carry, periods = _loop(step, carry, lambda i: (_at(i, self.periods), periods[i], _at(i, per_period)), self.count)
            elif self.stack == "scan":
                carry, periods = jax.lax.scan(step, carry, (self.periods, periods, per_period))
            else:
                carry, periods = _loop(step, carry, lambda i: _at(i, (self.periods, periods, per_period)), self.count)
                periods = jax.tree.map(lambda *leaves: jnp.stack(leaves), *periods)
        if self.rest is not None:
            carry, rest = run(self.rest, carry, rest, keys[1])
        return carry[0], None if state == (None, None) else StackState(periods, rest)

    def init_state(self, batch, max_length=None, dtype=None) -> StackState:
        """The empty state of every layer."""
        periods = rest = ()
        if self.periods is not None:
            periods = jax.vmap(lambda period: period.init_state(batch, max_length, dtype))(self.periods)
        if self.rest is not None:
            rest = self.rest.init_state(batch, max_length, dtype)
        return StackState(periods, rest)

    def flops(self, batch, length) -> int:
        """Forward model FLOPs."""
        periods = 0 if self.periods is None else self.count * self.periods.flops(batch, length)
        return periods + (0 if self.rest is None else self.rest.flops(batch, length))


def _loop(step, carry, xs, count):
    """`lax.scan` over xs(0) to xs(count - 1) as a Python loop: (carry, the tuple of the outputs)."""
    outputs = []
    for i in range(count):
        carry, y = step(carry, xs(i))
        outputs.append(y)
    return carry, tuple(outputs)


def _at(i, tree):
    return jax.tree.map(lambda leaf: leaf[i], tree)


class ModelState(NamedTuple):
    """The state of a LanguageModel."""

    stack: StackState
    position: Array  # [b] int32, tokens of the current document so far
    segment: Array  # [b] int32, the last document id seen

    def row_axes(self) -> "ModelState":
        """Which axis of each leaf counts the rows: the second where layers are stacked, else the first."""
        ones, zeros = (lambda tree, axis=axis: jax.tree.map(lambda _: axis, tree) for axis in (1, 0))
        apart = isinstance(self.stack.periods, tuple)
        return ModelState(StackState((zeros if apart else ones)(self.stack.periods), zeros(self.stack.rest)), 0, 0)


class LanguageModel(nnx.Module):
    """Embedding, Stack, norm, head: tokens to logits. `model(tokens, state=...)` obeys the mixers' law.

    Embeddings are drawn from N(0, 1/d_model): a tied head's logits start in scale, and the tokens do not drown what the blocks add
    to the residual stream, which is what recall over two layers is built from.

    Args:
      vocab_size: number of token ids.
      d_model: width of the residual stream.
      layers: spec strings of mixers, cycled over depth: ("mamba2", "mamba2", "softmax(window=256)") is a hybrid.
      depth: number of blocks.
      channel: spec string of the channel mixer: "swiglu", "geglu", "gelu", "rwkv" or "none", with settings.
      norm: "rms" or "layer".
      norm_eps: what the backbone's norms add to the mean square.
      norm_at: where a block's norms stand: "input", before what a branch reads, or "output", behind what it gives (OLMo team 2025,
        arXiv:2501.00656); one for each of `layers`, or one for all.
      normed_residual: whether a branch is added to what it read, its norm's output, and not to what stood before the norm.
      residual_scale: factor on what a branch is added to.
      embedding_norm: whether a norm follows the embedding.
      embedding_scale: factor on the embedding of a token; the tied head's is 1 all the same.
      tied: whether the head is the embedding, transposed.
      learned_positions: None, or how many positions (from 0 in each document) get a learned embedding added to the token's. A later
        position gives NaN, never a neighbour's row.
      dropout: rate on each branch before it joins the residual stream; active when a key is given.
      embedding_dropout: rate on the embedding; None: as `dropout`.
      stack: "scan" or "loop" over the layers; the same parameters and numbers.
      remat: "none", "full" or "dots": what a block's backward pass recomputes.
      logits_soft_cap: None, or c > 0: logits become c tanh(logits / c), within (-c, c).
      dtype: of the computation; None is param_dtype. Logits are at least float32.
      residual_dtype: of the residual stream, if wider than the computation's; None is the computation's.
      param_dtype: of the parameters.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        layers: Sequence[str] = ("softmax",),
        depth: int = 2,
        channel: str = "swiglu",
        norm: str = "rms",
        norm_eps: float = 1e-5,
        norm_at: str | Sequence[str] = "input",
        normed_residual: bool = False,
        residual_scale: float = 1.0,
        embedding_norm: bool = False,
        embedding_scale: float = 1.0,
        tied: bool = True,
        learned_positions: int | None = None,
        dropout: float = 0.0,
        embedding_dropout: float | None = None,
        stack: str = "scan",
        remat: str = "none",
        logits_soft_cap: float | None = None,
        dtype: Any = None,
        residual_dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if logits_soft_cap is not None and logits_soft_cap <= 0:
            raise ValueError(f"logits_soft_cap={logits_soft_cap}: wanted more than 0, or None")
        self.dtype = param_dtype if dtype is None else dtype
        self.residual_dtype = self.dtype
        if residual_dtype is not None:  # layers without a dtype of their own compute in their input's, which is the stream's
            dtype, self.residual_dtype = self.dtype, jnp.promote_types(self.dtype, residual_dtype)
        normal = jax.nn.initializers.normal(d_model**-0.5)
        self.embedding = nnx.Param(normal(rngs.params(), (vocab_size, d_model), param_dtype), axes=("vocab", "embed"))
        table = (learned_positions or 0, d_model)
        table = nnx.Param(normal(rngs.params(), table, param_dtype), axes=(None, "embed")) if learned_positions else None
        self.position_embedding = table
        self.stack = Stack(
            d_model,
            layers=layers,
            depth=depth,
            stack=stack,
            remat=remat,
            channel=channel,
            norm=norm,
            norm_eps=norm_eps,
            norm_at=norm_at,
            normed_residual=normed_residual,
            residual_scale=residual_scale,
            dropout=dropout,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        make_norm = partial(NORMS[norm], d_model, eps=norm_eps, param_dtype=param_dtype, rngs=rngs)
        self.norm, self.embedding_norm = make_norm(), make_norm() if embedding_norm else None
        self.embedding_scale, self.logits_soft_cap = embedding_scale, logits_soft_cap
        self.head = None if tied else Linear(d_model, vocab_size, axes=("embed", "vocab"), param_dtype=param_dtype, rngs=rngs)
        self.sizes = (vocab_size, d_model)
        self.dropout = dropout if embedding_dropout is None else embedding_dropout

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
        """`__call__` up to the head: (x [b, t, d_model] after the last norm, state or None). `attend(x)` is the logits."""
        keys = (None, None) if key is None else jax.random.split(key)
        batch, length = tokens.shape
        none = jnp.zeros((batch,), jnp.int32)
        segment, count = (None, none) if state is None else (state.segment, state.position)
        counted, count = documents.positions(segment_ids, segment, count, length)
        # Gathered over fsdp before the lookup: rows of tokens and columns of the table share that axis.
        x = jnp.take(constrain(self.embedding[...], "h ."), tokens, axis=0).astype(self.dtype)
        x = x if self.embedding_scale == 1 else x * self.embedding_scale
        if self.position_embedding is not None:
            where = counted if positions is None else positions
            if segment_ids is not None:
                where = jnp.where(segment_ids != 0, where, 0)
            rows = jnp.take(constrain(self.position_embedding[...], ". ."), where, axis=0, mode="fill", fill_value=jnp.nan)
            x = x + rows.astype(self.dtype)
        x = x if self.embedding_norm is None else self.embedding_norm(x)
        x = constrain(dropout(x, self.dropout, keys[0]), "b t .").astype(self.residual_dtype)
        inner = None if state is None else state.stack
        x, inner = self.stack(x, state=inner, segment_ids=segment_ids, positions=positions, key=keys[1])
        x = self.norm(x)
        if state is None:
            return x, None
        return x, ModelState(inner, count, documents.last_segment(segment_ids, state.segment))

    def attend(self, x: Array) -> Array:
        """The head: [..., d_model] -> [..., vocab_size], accumulated in float32 or better."""
        w = self.embedding[...].T if self.head is None else self.head.w[...]
        x = x.astype(self.dtype)
        logits = jnp.matmul(x, w.astype(x.dtype), preferred_element_type=jnp.result_type(x, jnp.float32))
        cap = self.logits_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> ModelState:
        """The empty state of `batch` rows; `max_length` bounds the caches that grow with a document."""
        dtype = self.dtype if dtype is None else dtype
        none = jnp.zeros((batch,), jnp.int32)
        return ModelState(self.stack.init_state(batch, max_length, dtype), none, none)

    def flops(self, batch: int, length: int) -> int:
        """Forward model FLOPs: the blocks' and the head's."""
        vocab_size, d_model = self.sizes
        return self.stack.flops(batch, length) + 2 * batch * length * d_model * vocab_size
