r"""Update of the state by one token, and the shapes that this op has inside.

    S_t = Diag(exp g_t) S_{t-1} Diag(exp gv_t) + b_t (a_t^T S_{t-1})  +  k_t v_t^T
          \_____________________ transition _____________________/      \_ write _/

The decays exp g (per head or per key channel) and exp gv (per value channel) forget; the low-rank term b a^T is what a delta rule
erases with. A document that starts inside a row is a transition that forgets everything.

Grouped heads: h = n * r. A group has one q, k, a and b, shared by its r heads (as B and C in Mamba-2, or K and V in GQA).

    q, k, a, b  [b, t, n, k]        v, o, u  [b, t, h, v]        S  [b, h, k, v]
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

# Products of one token and the state. HIGHEST: the defaults of GPUs (TF32) and TPUs (bfloat16) are 1e-3 off.
_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
outer_product = functools.partial(_einsum, "bhk,bhv->bhkv")  # x y^T
query_state = functools.partial(_einsum, "bhk,bhkv->bhv")  # S^T x
query_state_transposed = functools.partial(_einsum, "bhv,bhkv->bhk")  # S y


class Transition(NamedTuple):
    """Parts of the transition; None is a part that is absent. Decays are logarithms, and after `factors` exp of them."""

    key_decay: Array | None = None  # g [b, t, h] for all of a head, or [b, t, h, k]
    value_decay: Array | None = None  # gv [b, t, h, v]; then `key_decay` is None or [b, t, h, k]
    a: Array | None = None  # [b, t, n, k]; then `value_decay` is None
    b: Array | None = None  # [b, t, n, k]; None with an `a`: the token's k

    def factors(self, dtype) -> "Transition":
        """The same with decays instead of their logarithms, in dtype."""
        exp = lambda g: None if g is None else jnp.exp(g.astype(dtype))
        return self._replace(key_decay=exp(self.key_decay), value_decay=exp(self.value_decay))


def make_transition(
    log_decay: Array | None, value_log_decay: Array | None, a: Array | None, b: Array | None, tokens: tuple[int, int, int]
) -> Transition:
    """The transition of every token of [b, t, h]; with value decays, one decay per head becomes a part of them."""
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay[None, None], tokens)
    if log_decay is not None and log_decay.ndim == 3 and value_log_decay is not None:
        return Transition(None, value_log_decay + log_decay[..., None], a, b)
    return Transition(log_decay, value_log_decay, a, b)


def separate_segments(transition: Transition, segment_ids: Array, starts: Array, tokens: tuple[int, int, int], dtype) -> Transition:
    """The transition that forgets everything at the first token of a document (starts [b, t]), and nothing at padding."""
    if transition.key_decay is None and transition.value_decay is None:
        transition = transition._replace(key_decay=jnp.zeros(tokens, dtype))

    def choose(x, at_starts):
        expand = lambda mask: mask.reshape(mask.shape + (1,) * (x.ndim - 2))
        return jnp.where(expand(starts), jnp.full_like(x, at_starts), jnp.where(expand(segment_ids == 0), jnp.zeros_like(x), x))

    forget = {"key_decay": -jnp.inf, "value_decay": -jnp.inf, "a": 0.0, "b": 0.0}
    return Transition(**{name: None if x is None else choose(x, forget[name]) for name, x in transition._asdict().items()})


def merge_heads(x: Array) -> Array:
    """[b, n, r, ...] -> [b, h, ...]."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def broadcast_heads(x: Array, heads: int) -> Array:
    """One token's [b, n, k] -> [b, h, k]: each group's vector for all heads that share it."""
    batch, groups, width = x.shape
    return merge_heads(jnp.broadcast_to(x[:, :, None], (batch, groups, heads // groups, width)))


def expand_to_state(decay: Array) -> Array:
    """One token's decay [b, h] or [b, h, k] with axes of size 1 up to the state's [b, h, k, v]."""
    return decay.reshape(decay.shape + (1,) * (4 - decay.ndim))


def decay_state(factors: Transition, state: Array, resets: bool) -> Array:
    """The state after the decays of one token: key_decay [b, h] or [b, h, k], value_decay [b, h, v].

    resets: where a decay is exactly 0 the result is 0, whatever the state.
    """
    decay = lambda factor, state: factor * (jnp.where(factor == 0, jnp.zeros_like(state), state) if resets else state)
    if factors.key_decay is not None:
        state = decay(expand_to_state(factors.key_decay), state)
    return state if factors.value_decay is None else decay(factors.value_decay[:, :, None], state)


def read_state(x: Array, state: Array, resets: bool) -> Array:
    """S^T x [b, h, v] for x [b, h, k]; with `resets` exactly 0 where all of x is, whatever the state."""
    read = query_state(x, state)
    return jnp.where(jnp.any(x != 0, axis=-1, keepdims=True), read, jnp.zeros_like(read)) if resets else read


def update_state(factors: Transition, k: Array, v: Array, state: Array, resets: bool) -> tuple[Array, Array | None]:
    """(S_t, u_t) from one token's factors, k [b, n, k], v [b, h, v] and S_{t-1}.

    u [b, h, v] is what the low-rank term writes with the key b: a^T S_{t-1}. Where k stands for b the two writes are one, with
    u = v + a^T S_{t-1}. Without a low-rank term u is None.
    """
    v, decayed = v.astype(state.dtype), decay_state(factors, state, resets)
    per_head = lambda x: broadcast_heads(x, v.shape[1]).astype(state.dtype)
    if factors.a is None:
        return decayed + outer_product(per_head(k), v), None
    u = read_state(per_head(factors.a), state, resets)
    if factors.b is None:
        u = v + u
        return decayed + outer_product(per_head(k), u), u
    return decayed + outer_product(per_head(k), v) + outer_product(per_head(factors.b), u), u
