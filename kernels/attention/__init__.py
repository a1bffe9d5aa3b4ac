"""Causal attention between pairs of tokens: softmax and sigmoid scores, windows, packed documents, grouped heads, and a KV cache.

`attention` here: signature, checks, choice of implementation and cache -> one of the implementations
`reference.py`: the definition, the whole matrix of scores     `decode.py`: the same without transposing the cache
`blockwise.py`: block by block, own backward pass              `ring.py`: blockwise with sharded time
`pairs.py`: mask and dropout of a pair                         `cache.py`: the state
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.attention import blockwise, decode, reference, ring
from seqzoo.kernels.attention.cache import Cache, cached_tokens, empty_cache, overflowed, updated_cache
from seqzoo.kernels.attention.pairs import PADDING_QUERY, Settings, Tokens, draw_random_bits
from seqzoo.kernels.common import implementations, segments, sharding, xla_cpu

__all__ = ["Cache", "attention", "empty_cache"]

IMPLEMENTATIONS = {"reference": reference.attend, "blockwise": blockwise.attend, "decode": decode.attend}
MAX_REFERENCE_SCORES = 2**20  # number of scores, b h t (s + t), up to which the reference is the fastest; measured on CPU
FEW_QUERIES = 16  # up to so many queries the reference is taken: a key is read once, blocks would not be reused


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scores: str = "softmax",
    bias: float = 0.0,
    scale: float | None = None,
    window: int | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
    initial_state: Cache | None = None,
    initial_segment: Array | None = None,
    segment_ids: Array | None = None,
    implementation: str | Sequence[str] | None = None,
) -> tuple[Array, Cache | None]:
    r"""Computes causal attention.

        softmax:  o_i = sum_j exp(s_ij) v_j / sum_j exp(s_ij)       s_ij = scale q_i . k_j
        sigmoid:  o_i = sum_j sigmoid(s_ij + bias) v_j

    where j runs over the keys that query i sees: those of the same document with position(j) <= position(i), and with a window
    position(i) - position(j) < window. The position is that inside the document and counts real tokens only. Query head i uses key
    head i // (h // hk) and value head i // (h // hv).

    Args:
      q: [b, t, h, k], t >= 1, floating point.
      k: [b, t, hk, k], same dtype; hk divides h.
      v: [b, t, hv, v], same dtype; hv divides h.
      scores: "softmax", or "sigmoid", without normalisation over the keys (Ramapuram et al., 2024, arXiv:2409.04431).
      bias: added to sigmoid scores; the paper's is -log(training length). It has no effect on softmax, where it must be 0.
      scale: of the dot products; None is k^-0.5.
      window: number of tokens that a query sees, itself included, >= 1; None is all.
      dropout: probability in [0, 1) with which a weight becomes 0, after normalisation; the others grow by 1 / (1 - dropout).
        Drawn by (row, head, id of the document, query position, key position): cutting the row changes nothing. Documents of one
        row with the same id draw alike.
      key: PRNG key of the dropout; None is deterministic, that is no dropout.
      initial_state: keys and values of the document so far, from `empty_cache` or an earlier call; None starts empty and returns
        no state. Its capacity s is at least the window; without a window s is the longest document that fits.
      initial_segment: [b] int32 document of `initial_state`; None or 0: it belongs to the first token's document.
      segment_ids: [b, t] int32 document of each token, 0 for padding; None: all continue the document of `initial_state`.
      implementation: None, a name, or several names of which the first is used:
        "reference": the whole matrix of scores; the definition.
        "blockwise": block by block, memory linear in t, own backward pass; with sharded time a ring of devices (`ring.py`).
        "decode": the whole matrix of scores without transposing the cache; costs hk (hv) times the multiplications.
        None takes "decode" on CPUs for one query after a cache, "reference" for few queries or scores, else "blockwise", which
        alone can shard time.
    Returns:
      (o [b, t, h, v] in q's dtype, 0 at padding; the cache after the last token, in the old cache's dtypes, or None). Without a
      window, tokens whose position is s or more have no slot: their outputs are NaN, and nothing in the cache is overwritten.
    Raises:
      ValueError: shapes, dtypes or settings that do not fit (found and wanted are named).
    Cost: O(b h t (s + t) (k + v)) time and O(b h t (s + t)) memory. "blockwise" skips blocks without a visible pair (causality,
      window, documents), and its memory is O(b h (s + t) (k + v)), backward included. State: see `Cache`.
    """
    _check(q, k, v, scores, bias, window, dropout, initial_state)
    segments.check(segment_ids, initial_segment, *q.shape[:2])
    b, t, h, width = q.shape
    q, k, v = (segments.mask_padding(x, segment_ids) for x in (q, k, v))
    settings = Settings(scores, float(bias), float(width**-0.5 if scale is None else scale), window, float(dropout))

    if initial_state is not None:
        count = initial_state.length
    else:
        count = jnp.zeros((1 if segment_ids is None else b,), jnp.int32)
    position, length = segments.positions(segment_ids, initial_segment, count, t)
    segment = jnp.zeros_like(position) if segment_ids is None else segments.relabel(segment_ids, initial_segment)
    tokens = Tokens(segment, position)
    queries = Tokens(jnp.where(segment < 0, PADDING_QUERY, segment), position)

    cache = None
    if initial_state is not None:
        old_keys, old_values = initial_state.keys.astype(k.dtype), initial_state.values.astype(v.dtype)
        cache = (old_keys, old_values, cached_tokens(initial_state, window))
    requested = implementation if isinstance(implementation, str) or not implementation else implementation[0]
    sharded_length = 1 if requested in ("reference", "decode") else t
    shards = sharding.plan("attention", b=b, t=sharded_length, h=(h, k.shape[2], v.shape[2]))
    pairs = t * (t + (0 if cache is None else cache[0].shape[1]))
    small = shards.time is None and (t <= FEW_QUERIES or b * h * pairs <= MAX_REFERENCE_SCORES)
    decoding = t == 1 and initial_state is not None and implementations.on_cpu()
    default = "decode" if decoding else "reference" if small else "blockwise"
    attend = implementations.choose("attention", implementation, IMPLEMENTATIONS, default)
    random_bits = None
    if dropout > 0 and key is not None:
        random_bits = draw_random_bits(key, Tokens(segments.ids(segment_ids, initial_segment, position.shape), position), b, h)
    # Visible keys are at most a window back in the row; not so in rows with padding, which a window does not count.
    visible_shards = shards.time_shards
    if window is not None and segment_ids is None:
        visible_shards = min(1 - (1 - window) // (t // shards.time_shards), shards.time_shards)

    def run(q, k, v, cache, tokens, queries, random_bits):
        kv_sets = [(k, v, tokens)] if cache is None else [cache, (k, v, tokens)]
        if shards.time is not None:
            return ring.attend(settings, q, kv_sets, queries, random_bits, shards.time, visible_shards)
        return attend(settings, q, kv_sets, queries, random_bits)

    arrays = (q, k, v, cache, tokens, queries, random_bits)
    axes = ("b t h .", "b t h .", "b t h .", ("b . h .", "b . h .", "b ."), "b t", "b t", "b h t .")
    o = segments.mask_padding(sharding.run_sharded(shards, run, arrays, axes, "b t h ."), segment_ids)
    if initial_state is None:
        return o, None

    lost = overflowed(initial_state, tokens, window)
    if lost is not None:
        o = jnp.where(lost[:, :, None, None], jnp.nan, o)
    if not shards.manual:  # on a mesh the partitioner would move o between devices for it
        tokens = tokens._replace(position=xla_cpu.order_after(tokens.position, o[:, :, 0, 0]))
    return o, updated_cache(initial_state, k, v, tokens, length, window, one_document=segment_ids is None)


def _check(q, k, v, scores, bias, window, dropout, cache):
    """Raises ValueError for arguments that do not fit."""
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q, k, v have shapes {q.shape}, {k.shape}, {v.shape}; wanted [b, t, h, k], [b, t, hk, k], [b, t, hv, v]")
    if not (q.shape[:2] == k.shape[:2] == v.shape[:2] and q.shape[3] == k.shape[3]) or q.shape[1] < 1:
        raise ValueError(
            f"q, k, v have shapes {q.shape}, {k.shape}, {v.shape}; wanted one batch, one length >= 1, and one width for q and k"
        )
    for name, x in (("k", k), ("v", v)):
        if x.shape[2] < 1 or q.shape[2] % x.shape[2]:
            raise ValueError(f"{name} has {x.shape[2]} heads, wanted a divisor of q's {q.shape[2]}")
    if not (q.dtype == k.dtype == v.dtype and jnp.issubdtype(q.dtype, jnp.floating)):
        raise ValueError(f"q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}; wanted one floating-point dtype")
    if scores not in ("softmax", "sigmoid"):
        raise ValueError(f"scores={scores!r}; wanted 'softmax' or 'sigmoid'")
    if scores == "softmax" and bias != 0:
        raise ValueError(f"bias={bias} has no effect on softmax scores; wanted 0, or scores='sigmoid'")
    if window is not None and window < 1:
        raise ValueError(f"window={window}; wanted at least 1 (the token itself), or None for no window")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}; wanted a probability in [0, 1)")
    if cache is None:
        return
    for name, old, new in (("keys", cache.keys, k), ("values", cache.values, v)):
        if old.ndim != 4 or (old.shape[0], *old.shape[2:]) != (new.shape[0], *new.shape[2:]):
            raise ValueError(
                f"the cache's {name} have shape {old.shape}, wanted [{new.shape[0]}, s, {new.shape[2]}, {new.shape[3]}]"
            )
    if cache.keys.shape[1] != cache.values.shape[1] or cache.keys.shape[1] < 1:
        raise ValueError(
            f"the cache has {cache.keys.shape[1]} slots for keys and {cache.values.shape[1]} for values, wanted as many, >= 1"
        )
    if cache.length.shape != q.shape[:1] or cache.length.dtype != jnp.int32:
        raise ValueError(f"the cache's length is {cache.length.dtype}{cache.length.shape}, wanted int32({q.shape[0]},)")
    if window is not None and cache.keys.shape[1] < window:
        raise ValueError(f"the cache has {cache.keys.shape[1]} slots, fewer than window={window}; wanted capacity >= window")
