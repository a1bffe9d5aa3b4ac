"""Linear attention: a matrix memory per head that decays as a whole, by key channel, by value channel, or not at all."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..common import implementations, segments, sharding
from ..common.vma import match_vma
from . import chunked, loop, mixed, reference, summary
from .grouping import Transition
from .measured import MEASURED

IMPLEMENTATIONS = {"reference": reference, "loop": loop, "chunked": chunked, "mixed": mixed}


class _Settings(NamedTuple):
    forms: implementations.Choice
    scale: float
    exclusive: bool
    chunk: int
    time: str | None  # the mesh axis that cuts time: this is one of its pieces

    def arguments(self):
        return {"scale": self.scale, "exclusive": self.exclusive, "chunk": self.chunk}


def linear_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    log_decay: Array | None = None,
    value_log_decay: Array | None = None,
    a: Array | None = None,
    b: Array | None = None,
    exclusive: bool = False,
    bonus: Array | None = None,
    scale: float | None = None,
    initial_state: Array | None = None,
    initial_segment: Array | None = None,
    segment_ids: Array | None = None,
    implementation: str | None = None,
    chunk_size: int | None = None,
) -> tuple[Array, Array]:
    """A causal memory of outer products, read by a query:

        S_t = Diag(exp g_t) S_{t-1} Diag(exp gv_t) + b_t (a_t^T S_{t-1}) + k_t v_t^T        S: [k, v]
        o_t = scale * S_t^T q_t
        or, exclusive:  scale * (S_{t-1} + Diag(u) k_t v_t^T)^T q_t

    Args:
      q, k: [b, t, groups, k] float. `groups` divides h: head i uses group i // (h // groups) (Mamba-2 shares B and C so).
      v: [b, t, h, v] float.
      log_decay: g <= 0, -inf included, which forgets exactly: None (keep everything), [h], [b, t, h] or [b, t, h, k].
        Positive values are not looked for; they grow the state.
      value_log_decay: gv <= 0, [b, t, h, v], the same for the value axis; None keeps everything.
      a, b: like k, the low-rank term b_t (a_t^T S_{t-1}); without a there is none, without b it is k. A delta rule has
        a = -exp(g) k' and k = beta k'. Not looked for: whether the state stays bounded. Not with value_log_decay.
      exclusive: whether a token reads the memory before its own decay and its own write; RWKV does.
      bonus: u [h, k] float, what an exclusive read sees of its own token; None: nothing.
      scale: factor on the output, a Python number; None is k ** -0.5.
      initial_state: [b, h, k, v] S before the first token; None is zero.
      initial_segment: [b] int32 document of `initial_state`; None or 0: it belongs to the first token's document.
      segment_ids: [b, t] int32 document of each token; 0 is padding, which neither writes nor decays. A document starts from S = 0.
      implementation: None, "reference" (`lax.scan`, differentiated by JAX: the definition), "loop" (token by token in place),
        "chunked" (matrix products) or "mixed" (the loop forward, chunks backward). None takes what was fastest at the nearest sizes
        of `measured.py`, with or without gradients as the case may be, and "loop" for one token.
      chunk_size: tokens per matrix product in "chunked" and "mixed", a power of 2; tokens between kept states in "loop", any
        number. None: 64, on a CPU and in "loop" 32. "reference" has none and refuses it.

    Returns:
      (o, S): o [b, t, h, v] in v's dtype, exactly 0 at padding; S [b, h, k, v] after the last token, in promote(float32,
      the inputs' dtypes).

    Raises:
      ValueError: shapes, dtypes, `implementation` or `chunk_size` do not fit (found and wanted are named).

    Sums and states are in the state's dtype. Matrix products of float32 (or wider) inputs run at `Precision.HIGHEST`: the defaults
    of GPUs (TF32) and TPUs (bfloat16) are 1e-3 off. With narrower inputs they run at the default, which on no platform rounds more
    than bfloat16 does.
    Backward: own rule; residuals are the inputs, the states every chunk or few, O(t/c k v), never O(t k v), and with an a what it
    found, O(t v). The gradient of log_decay sums products of decays with what they scale, never differences of running sums.
    Cost: time O(t k v) ("loop") or O(t c (k + v) + t k v) ("chunked"); the state is h k v numbers per row, whatever t.
    Source: Katharopoulos et al., 2020, arXiv:2006.16236; chunks and channel decay: Yang et al., 2023, arXiv:2312.06635; head decay:
    Dao and Gu, 2024, arXiv:2405.21060; value decay: Zhang et al., 2024, arXiv:2409.07146; exclusive read and bonus: Peng et al.,
    2024, arXiv:2404.05892.
    """
    _check(q, k, v, log_decay, value_log_decay, a, b, exclusive, bonus, initial_state)
    batch, length, _, width = q.shape
    heads = v.shape[2]
    segments.check(segment_ids, initial_segment, batch, length)
    floats = [x for x in (q, k, v, log_decay, value_log_decay, a, b, bonus, initial_state) if x is not None]
    state_dtype = implementations.state_dtype(*floats)

    shape = (batch, heads, width, v.shape[3])
    state = jnp.zeros(shape, state_dtype) if initial_state is None else initial_state.astype(state_dtype)
    default = _default(length, kind(log_decay, value_log_decay, a), state.shape)
    forms = implementations.choose_pair("linear_attention", implementation, IMPLEMENTATIONS, default)
    shards = sharding.plan("linear_attention", b=batch, t=1 if implementation == "reference" else length, h=(q.shape[2], heads))
    chunk = _chunk(forms, chunk_size, length // shards.time_shards)
    settings = _Settings(forms, width**-0.5 if scale is None else float(scale), exclusive, chunk, shards.time)

    transition = _per_token(log_decay, value_log_decay, (batch, length, heads))._replace(a=a, b=b)
    reads = q
    if segment_ids is not None:
        starts = segments.starts(segment_ids, initial_segment)
        if log_decay is None and value_log_decay is None:
            transition = transition._replace(key=jnp.zeros((batch, length, heads), state_dtype))
        k, transition = segments.mask_padding(k, segment_ids), _separate(transition, segment_ids, starts)
        if exclusive:  # the memory before a document's first token is another document's
            reads = jnp.where(starts[..., None, None], jnp.zeros((1,) * 4, q.dtype), q)

    axes = (
        "b t h .",
        "b t h .",
        "b t h .",
        tuple("b t h ." if x is None or x.ndim == 4 else "b t h" for x in transition),
        "b h . .",
    )
    arrays = (reads, k, v, transition, state)
    o, state = sharding.run_sharded(shards, functools.partial(_piece, settings), arrays, axes, ("b t h .", "b h . ."))
    if bonus is not None:
        o = (o + _own(q, k, v, bonus, settings.scale, state_dtype)).astype(v.dtype)
    return segments.mask_padding(o, segment_ids), state


def _piece(settings, q, k, v, transition, state):
    if settings.forms.forward == "reference" or q.shape[1] == 0:
        return reference.forward(q, k, v, transition, state, scale=settings.scale, exclusive=settings.exclusive)
    o, last = _attend(settings, *match_vma((q, k, v, transition, state), over=sharding.axis_tuple(settings.time)))
    return o, sharding.broadcast_from_shard(-1, last, settings.time)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings, q, k, v, transition, state):
    o, last, _ = _run(settings.forms.forward, settings, q, k, v, transition, state, save=False)
    return o, last


def _run(form, settings, q, k, v, transition, state, save):
    if settings.time is not None:
        piece = summary.forward(_alone(form, settings), k, v, transition, state.dtype)
        state = sharding.prefix_over_shards(summary.compose, piece, state, settings.time)
    return IMPLEMENTATIONS[form].forward(q, k, v, transition, state, **settings.arguments(), save=save)


def _alone(form, settings):
    """That form's forward pass, whose outputs nobody reads."""
    return functools.partial(IMPLEMENTATIONS[form].forward, scale=1.0, exclusive=True, chunk=settings.chunk, save=False)


def _attend_forward(settings, q, k, v, transition, state):
    o, last, kept = _run(settings.forms.backward, settings, q, k, v, transition, state, save=True)
    return (o, last), (q, k, v, transition, kept)


def _attend_backward(settings, residuals, cotangents):
    q, k, v, transition, kept = residuals
    d_o, d_last = cotangents
    form = settings.forms.backward
    if settings.time is not None:
        run = _alone(form, settings)
        piece = summary.backward(run, q, k, d_o, transition, d_last.dtype, settings.scale, settings.exclusive)
        through = piece._replace(added=summary.compose(d_last, piece))
        d_last = d_last + sharding.prefix_over_shards(summary.compose, through, jnp.zeros_like(d_last), settings.time, reverse=True)
    *gradients, d_state = IMPLEMENTATIONS[form].backward(q, k, v, transition, kept, d_o, d_last, **settings.arguments())
    return match_vma((*gradients, sharding.mask_to_shard(0, d_state, settings.time)))


_attend.defvjp(_attend_forward, _attend_backward)


def _per_token(log_decay, value_log_decay, shape):
    """Decays of every token; one per head beside value decays is a part of theirs."""
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay[None, None], shape)
    if log_decay is not None and log_decay.ndim == 3 and value_log_decay is not None:
        return Transition(None, value_log_decay + log_decay[..., None])
    return Transition(log_decay, value_log_decay)


def _separate(transition, segment_ids, starts):
    """By which a document's first token forgets everything before it, and padding nothing."""

    def choose(x, at_starts):
        over = lambda where: where.reshape(where.shape + (1,) * (x.ndim - 2))
        return jnp.where(over(starts), jnp.full_like(x, at_starts), jnp.where(over(segment_ids == 0), jnp.zeros_like(x), x))

    forget = {"key": -jnp.inf, "value": -jnp.inf, "a": 0.0, "b": 0.0}
    return Transition(**{name: None if x is None else choose(x, forget[name]) for name, x in transition._asdict().items()})


def _own(q, k, v, bonus, scale, dtype):
    """What an exclusive read sees of its own token, scale (q^T Diag(u) k) v: [b, t, h, v]."""
    q, k = (jnp.repeat(x.astype(dtype), v.shape[2] // x.shape[2], axis=2) for x in (q, k))
    return scale * jnp.sum(q * bonus.astype(dtype)[None, None] * k, axis=-1, keepdims=True) * v.astype(dtype)


def kind(log_decay: Array | None, value_log_decay: Array | None, a: Array | None) -> str:
    """What becomes of the state, as the table of measured times has it."""
    if a is not None:
        return "low rank"
    if value_log_decay is not None:
        return "value"
    return "none" if log_decay is None else "channel" if log_decay.ndim == 4 else "head"


def _default(length, kind, state_shape):
    """The forms that None stands for: what was timed; one token is too small a product to be worth a chunk."""
    batch, heads, width, value_width = state_shape
    if length == 1 or not batch * heads * width * value_width:
        return implementations.Choice("loop", "loop")
    return implementations.fastest(MEASURED, kind, (batch * heads, width, value_width), "chunked")


def _chunk(forms, chunk_size, length):
    halves = [form for form in forms if form in ("chunked", "mixed")]
    if chunk_size is None:
        chunk_size = 64 if halves and not implementations.on_cpu() else 32
    elif "reference" in forms:
        raise ValueError(f'chunk_size={chunk_size!r} means nothing to implementation="reference", wanted None')
    elif not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size!r}, wanted a positive int or None")
    if halves and chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size={chunk_size!r}, wanted a power of 2: implementation={halves[0]!r} halves chunks")
    return min(chunk_size, 1 << max(length - 1, 0).bit_length())


def _check(q, k, v, log_decay, value_log_decay, a, b, exclusive, bonus, initial_state):
    floats = {"q": q, "k": k, "v": v, "log_decay": log_decay, "value_log_decay": value_log_decay, "a": a, "b": b, "bonus": bonus}
    for name, x in (floats | {"initial_state": initial_state}).items():
        if x is not None and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {x.dtype}, wanted a floating dtype")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {x.shape}, wanted 4 axes [b, t, heads, width]")
    for name, x in (("k", k), ("a", a), ("b", b)):
        if x is not None and x.shape != q.shape:
            raise ValueError(f"{name} has shape {x.shape}, wanted q's {q.shape}")
    if a is None and b is not None:
        raise ValueError("b is given and a is None, wanted both or a alone: b_t (a_t^T S_{t-1}) is one term")
    if a is not None and value_log_decay is not None:
        raise ValueError("a and value_log_decay are given, wanted one of them: a low-rank term goes with decays of the keys alone")
    batch, length, groups, width = q.shape
    heads = v.shape[2]
    if v.shape[:2] != (batch, length) or groups == 0 or heads % groups:
        raise ValueError(f"v has shape {v.shape}, wanted [{batch}, {length}, a multiple of q's {groups} heads, v]")
    forms = ((heads,), (batch, length, heads), (batch, length, heads, width))
    if log_decay is not None and log_decay.shape not in forms:
        raise ValueError(f"log_decay has shape {log_decay.shape}, wanted one of {', '.join(map(str, forms))}")
    if value_log_decay is not None and value_log_decay.shape != v.shape:
        raise ValueError(f"value_log_decay has shape {value_log_decay.shape}, wanted v's {v.shape}")
    if bonus is not None and not exclusive:
        raise ValueError("bonus is given and exclusive=False, wanted exclusive=True: an inclusive read sees its own token anyway")
    if bonus is not None and bonus.shape != (heads, width):
        raise ValueError(f"bonus has shape {bonus.shape}, wanted {(heads, width)}")
    wanted = (batch, heads, width, v.shape[3])
    if initial_state is not None and initial_state.shape != wanted:
        raise ValueError(f"initial_state has shape {initial_state.shape}, wanted {wanted}")
