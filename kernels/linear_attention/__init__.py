"""Linear attention: one recurrence of a matrix-valued state per head, which nearly every linear mixer is a call of.

`linear_attention` here: signature and checks -> `vjp.py`: derivative rule, context parallelism -> one of the implementations
`reference.py`: the definition             `recurrent.py`: token by token, in place
`chunkwise.py`: matrix products over chunks, of `intra_chunk.py` (on the `block_tree.py` of a chunk) and `inter_chunk.py`
`transition.py`: shapes, the update by one token     `shard_transition.py`: the same of a shard of the sequence
`tuning.py`: the choice of an implementation         `delta_rule.py`: delta rules as calls of the op
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ..common import implementations, segments, sharding
from ..common.vma import match_vma
from . import chunkwise, defaults, recurrent, reference
from .transition import make_transition, separate_segments
from .vjp import Implementation, Settings, attend, attend_shard

IMPLEMENTATIONS = {  # and "reference"
    "recurrent": Implementation(recurrent.forward, recurrent.backward),
    "chunkwise": Implementation(chunkwise.forward, chunkwise.backward),
    "recurrent_forward_chunkwise_backward": Implementation(chunkwise.recurrent_forward, chunkwise.backward),
}


def linear_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    log_decay: Array | None = None,
    value_log_decay: Array | None = None,
    a: Array | None = None,
    b: Array | None = None,
    read_before_write: bool = False,
    bonus: Array | None = None,
    scale: float | None = None,
    output_dtype: DTypeLike | None = None,
    initial_state: Array | None = None,
    initial_segment: Array | None = None,
    segment_ids: Array | None = None,
    implementation: str | Sequence[str] | None = None,
    chunk_size: int | None = None,
) -> tuple[Array, Array]:
    """Computes a causal recurrence of outer products, read by a query:

        S_t = Diag(exp g_t) S_{t-1} Diag(exp gv_t) + b_t (a_t^T S_{t-1}) + k_t v_t^T        S: [k, v]
        o_t = scale * S_t^T q_t
        or, read before the write:  scale * (S_{t-1} + Diag(u) k_t v_t^T)^T q_t

    Args:
      q, k: [b, t, groups, k] float. `groups` divides h: head i uses group i // (h // groups), as B and C of Mamba-2.
      v: [b, t, h, v] float.
      log_decay: g <= 0, -inf included, which forgets exactly: None (keep everything), [h], [b, t, h] or [b, t, h, k].
        Positive values are not checked; they grow the state.
      value_log_decay: gv <= 0, [b, t, h, v], the same for the value axis; None keeps everything.
      a, b: like k, the low-rank term b_t (a_t^T S_{t-1}); None, a without b: b is k. The delta rule is a = -exp(g) k' and
        k = beta k' (`delta_rule.py`). A bounded state is not checked. Not together with value_log_decay.
      read_before_write: a token reads the state before its own decay and its own write, as in RWKV.
      bonus: u [h, k] float, the weight of a token's own k v^T in a read before the write; None is 0.
      scale: factor on the output, a Python number; None is k ** -0.5.
      output_dtype: of o; None is v's. A quotient of two of its columns, sums over a whole row, wants float32.
      initial_state: [b, h, k, v] S before the first token; None is zero.
      initial_segment: [b] int32 document of `initial_state`; None or 0: it belongs to the first token's document.
      segment_ids: [b, t] int32 document of each token; 0 is padding, which neither writes nor decays. A document starts from S = 0.
      implementation: None, a name, or several names of which the first that takes the inputs is used:
        "reference": `lax.scan`, differentiated by JAX in either mode; the definition.
        "recurrent": token by token, in place.
        "chunkwise": matrix products over chunks of tokens.
        "recurrent_forward_chunkwise_backward": its name.
        None takes the fastest at the nearest measured sizes (`tuning.py`), with or without gradients; "recurrent" for one token.
      chunk_size: tokens in a chunk: a power of 2 for chunkwise passes; for "recurrent" the tokens between saved states, any number.
        None is 64, on a CPU and for "recurrent" 32. "reference" has no chunks and refuses it.

    Returns:
      (o, S): o [b, t, h, v] in `output_dtype`, exactly 0 at padding; S [b, h, k, v] after the last token, in promote(float32,
      the inputs' dtypes).

    Raises:
      ValueError: shapes, dtypes, `implementation` or `chunk_size` do not fit (found and wanted are named).
      NotImplementedError: the named implementations cannot take this `chunk_size` (why).

    Precision: sums and states are in the state's dtype. Matrix products of float32 (or wider) inputs run at `Precision.HIGHEST`:
    the defaults of GPUs (TF32) and TPUs (bfloat16) are 1e-3 off. With narrower inputs they run at the default, which on no
    platform rounds more than bfloat16 does.
    Overflow: a document whose numbers become infinite does not reach the next one, as long as its q, k, v are finite; nor do NaN
    gradients of its outputs. With a low-rank term the chunkwise form needs finite states too.
    Backward: own derivative rule (`vjp.py`); residuals are the inputs, the states every chunk or few, O(t/c k v), never O(t k v),
    and with an a its reads, O(t v). The gradient of log_decay sums products of decays with what they scale, never differences of
    running sums.
    Cost: time O(t k v) ("recurrent") or O(t c (k + v) + t k v) ("chunkwise"); the state is h k v numbers per row, for any t.
    Source: Katharopoulos et al., 2020, arXiv:2006.16236; chunks and channel decay: Yang et al., 2023, arXiv:2312.06635; head decay:
    Dao and Gu, 2024, arXiv:2405.21060; value decay: Zhang et al., 2024, arXiv:2409.07146; read before the write, and bonus: Peng et
    al., 2024, arXiv:2404.05892.
    """
    _check(q, k, v, log_decay, value_log_decay, a, b, read_before_write, bonus, initial_state)
    (batch, length, groups, width), (*_, heads, value_width) = q.shape, v.shape
    segments.check(segment_ids, initial_segment, batch, length)
    floats = [x for x in (q, k, v, log_decay, value_log_decay, a, b, bonus, initial_state) if x is not None]
    dtype = implementations.state_dtype(*floats)
    shape = (batch, heads, width, value_width)
    state = jnp.zeros(shape, dtype) if initial_state is None else initial_state.astype(dtype)

    default = defaults.choices(length, defaults.kind(log_decay, value_log_decay, a), shape)
    check = functools.partial(defaults.chunk_size, requested=chunk_size, length=length)
    choice = implementations.choose_pair("linear_attention", implementation, ("reference", *IMPLEMENTATIONS), default, check)
    uses_reference = choice.forward == "reference"
    shards = sharding.plan("linear_attention", b=batch, t=1 if uses_reference else length, h=(groups, heads))
    chunk_size = defaults.chunk_size(choice, chunk_size, length // shards.time_shards)
    output_dtype = v.dtype if output_dtype is None else jnp.dtype(output_dtype)
    factor = width**-0.5 if scale is None else float(scale)

    q, k, v = (segments.mask_padding(x, segment_ids) for x in (q, k, v))
    transition, queries = make_transition(log_decay, value_log_decay, a, b, (batch, length, heads)), q
    if segment_ids is not None:
        starts = segments.starts(segment_ids, initial_segment)
        transition = separate_segments(transition, segment_ids, starts, (batch, length, heads), dtype)
        if read_before_write:  # the state before a document's first token is another document's
            queries = jnp.where(starts[..., None, None], jnp.zeros((1,) * 4, q.dtype), q)

    arrays = match_vma((queries, k, v, transition, state))
    if uses_reference:
        settings = {
            "scale": factor,
            "read_before_write": read_before_write,
            "resets": segment_ids is not None,
            "output_dtype": output_dtype,
        }
        run = functools.partial(reference.forward, **settings)
    else:
        passes = IMPLEMENTATIONS[choice.forward], IMPLEMENTATIONS[choice.backward]
        settings = Settings(*passes, factor, read_before_write, chunk_size, segment_ids is not None, output_dtype, shards.time)
        run = functools.partial(attend_shard if shards.manual else attend, settings)
    if shards.manual:
        token, head = "b t h .", "b h . ."
        decays = tuple(token if x is None or x.ndim == 4 else "b t h" for x in transition)
        o, state = sharding.run_sharded(shards, run, arrays, (token, token, token, decays, head), (token, head))
    else:
        o, state = run(*arrays)
    if bonus is not None:
        q, k = (jnp.repeat(x.astype(dtype), heads // groups, axis=2) for x in (q, k))
        own = jnp.sum(q * bonus.astype(dtype)[None, None] * k, axis=-1, keepdims=True)  # q^T Diag(u) k
        o = (o + factor * own * v.astype(dtype)).astype(output_dtype)
    return segments.mask_padding(o, segment_ids), state


def _check(q, k, v, log_decay, value_log_decay, a, b, read_before_write, bonus, initial_state):
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
    shapes = ((heads,), (batch, length, heads), (batch, length, heads, width))
    if log_decay is not None and log_decay.shape not in shapes:
        raise ValueError(f"log_decay has shape {log_decay.shape}, wanted one of {', '.join(map(str, shapes))}")
    if value_log_decay is not None and value_log_decay.shape != v.shape:
        raise ValueError(f"value_log_decay has shape {value_log_decay.shape}, wanted v's {v.shape}")
    if bonus is not None and not read_before_write:
        raise ValueError(
            "bonus is given and read_before_write=False, wanted read_before_write=True: a read after the write sees its own token"
        )
    if bonus is not None and bonus.shape != (heads, width):
        raise ValueError(f"bonus has shape {bonus.shape}, wanted {(heads, width)}")
    wanted = (batch, heads, width, v.shape[3])
    if initial_state is not None and initial_state.shape != wanted:
        raise ValueError(f"initial_state has shape {initial_state.shape}, wanted {wanted}")
