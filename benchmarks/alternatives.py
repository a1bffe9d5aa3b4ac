"""Plain JAX alternatives to the ops. Each is differentiated by JAX itself and returns the output only."""

import jax
import jax.numpy as jnp
from jax import lax


def _associative(a, b):
    """h_t = a_t h_{t-1} + b_t along axis 1, by the logarithmic scan."""

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    return lax.associative_scan(combine, (a, b), axis=1)[1]


def _over_time(step, initial, *inputs):
    """`step` along axis 1 of the inputs by lax.scan."""
    _, y = lax.scan(step, initial, tuple(jnp.moveaxis(x, 1, 0) for x in inputs))
    return jnp.moveaxis(y, 0, 1)


def recurrence_associative(a, b):
    """[b, t, d] each."""
    return _associative(a, b)


def recurrence_scan(a, b):
    """[b, t, d] each."""

    def step(h, token):
        h = token[0] * h + token[1]
        return h, h

    return _over_time(step, jnp.zeros_like(b[:, 0]), a, b)


def selective_associative(x, dt, A, B, C):
    """Writes decay and input out as [b, t, d, n], as most ports do."""
    decay = jnp.exp(dt[..., None] * A[None, None])
    write = (dt * x)[..., None] * B[:, :, None]
    return jnp.einsum("btdn,btn->btd", _associative(decay, write), C)


def selective_scan(x, dt, A, B, C):
    """One token at a time, state [b, d, n]."""

    def step(h, token):
        x, dt, B, C = token
        h = jnp.exp(dt[..., None] * A[None]) * h + (dt * x)[..., None] * B[:, None]
        return h, jnp.einsum("bdn,bn->bd", h, C)

    return _over_time(step, jnp.zeros((x.shape[0], *A.shape), x.dtype), x, dt, B, C)


def linear_attention_scan(q, k, v, log_decay=None, value_log_decay=None, read_before_write=False, bonus=None):
    """One token at a time; log_decay [b, t, h] or [b, t, h, k], value_log_decay [b, t, h, v], bonus [h, k]."""
    decays = [] if log_decay is None else [_per_channel(log_decay, k)[..., None]]
    decays += [] if value_log_decay is None else [jnp.exp(value_log_decay)[..., None, :]]

    def step(S, token):
        q, k, v, *decays = token
        write, before = k[..., None] * v[..., None, :], S
        for decay in decays:
            S = decay * S
        S = S + write
        return S, jnp.einsum("bhk,bhkv->bhv", q, before + bonus[None, ..., None] * write if read_before_write else S)

    b, _, h, width = k.shape
    return _over_time(step, jnp.zeros((b, h, width, v.shape[-1]), v.dtype), q, k, v, *decays)


def delta_scan(q, k, v, beta, log_decay=None):
    """The delta rule one token at a time; beta [b, t, h], log_decay [b, t, h] or [b, t, h, k]."""
    decays = [] if log_decay is None else [_per_channel(log_decay, k)[..., None]]

    def step(S, token):
        q, k, v, beta, *decays = token
        for decay in decays:
            S = decay * S
        found = jnp.einsum("bhk,bhkv->bhv", k, S)
        S = S + (beta[..., None] * k)[..., None] * (v - found)[..., None, :]
        return S, jnp.einsum("bhk,bhkv->bhv", q, S)

    b, _, h, width = k.shape
    return _over_time(step, jnp.zeros((b, h, width, v.shape[-1]), v.dtype), q, k, v, beta, *decays)


def linear_attention_associative(q, k, v, log_decay):
    """Writes every state out as [b, t, h, k, v]."""
    write = k[..., None] * v[..., None, :]
    decay = jnp.broadcast_to(_per_channel(log_decay, k)[..., None], write.shape)
    return jnp.einsum("bthk,bthkv->bthv", q, _associative(decay, write))


def linear_attention_quadratic(q, k, v, log_decay):
    """The [b, h, t, t] matrix of decayed scores; scalar decay only. Loses digits at strong decay, which the others do not."""
    total = jnp.cumsum(log_decay, axis=1)
    difference = jnp.moveaxis(total[:, :, None] - total[:, None], 3, 1)
    causal = jnp.tril(jnp.ones(difference.shape[2:], bool))[None, None]
    weights = jnp.exp(jnp.where(causal, difference, -jnp.inf))
    return jnp.einsum("bhts,bshv->bthv", jnp.einsum("bthk,bshk->bhts", q, k) * weights, v)


def softmax_dot_product(q, k, v):
    """JAX's own attention, as the portable XLA form."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")


def sigmoid_matrix(q, k, v, bias):
    """The whole [b, h, t, t] matrix of weights."""
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5 + bias
    causal = jnp.tril(jnp.ones(scores.shape[2:], bool))[None, None]
    return jnp.einsum("bhts,bshv->bthv", jnp.where(causal, jax.nn.sigmoid(scores), 0.0), v)


def convolution_xla(x, weight):
    """XLA's grouped convolution."""
    return lax.conv_general_dilated(
        x,
        weight[:, None],
        window_strides=(1,),
        padding=[(weight.shape[0] - 1, 0)],
        dimension_numbers=("NTC", "TIO", "NTC"),
        feature_group_count=x.shape[-1],
    )


def _per_channel(log_decay, k):
    decay = jnp.exp(log_decay)
    return decay if log_decay.ndim == k.ndim else jnp.broadcast_to(decay[..., None], k.shape)
