"""Cases to compare: each op at each shape, its implementations and the alternatives to it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import alternatives as plain
from seqzoo.kernels.attention import attention
from seqzoo.kernels.convolution import short_convolution
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_attention.delta_rule import delta_rule, l2_normalise
from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.kernels.selective_scan import selective_scan

SCANS = ("recurrent", "chunkwise")
LINEAR_ATTENTION = ("recurrent", "chunkwise", "recurrent_forward_chunkwise_backward")


class Case(NamedTuple):
    """One op at one shape. Every callable maps the arrays that `inputs` makes to the output (states are dropped)."""

    op: str
    label: str
    inputs: Callable  # key -> tuple of arrays
    reference: Callable
    ours: dict[str, Callable]
    others: dict[str, Callable]


def _case(op, label, inputs, call, implementations, others) -> Case:
    """`call(implementation)` is the op under that name."""
    ours = {"default": call(None)} | {name: call(name) for name in implementations}
    return Case(op, label, inputs, call("reference"), ours, others)


def _recurrence(b, t, d):
    def inputs(key):
        one, two = jax.random.split(key)
        return jax.random.uniform(one, (b, t, d), minval=0.8, maxval=1.0), jax.random.normal(two, (b, t, d))

    def call(implementation):
        return lambda a, b: linear_recurrence(a, b, implementation=implementation)[0]

    others = {"associative_scan": plain.recurrence_associative, "lax.scan": plain.recurrence_scan}
    return _case("linear_recurrence", f"B{b} T{t} D{d}", inputs, call, SCANS, others)


def _selective(b, t, d, n):
    def inputs(key):
        keys = jax.random.split(key, 4)
        x, B, C = (jax.random.normal(k, (b, t, width)) for k, width in zip(keys, (d, n, n), strict=False))
        dt = jnp.exp(jax.random.uniform(keys[3], (b, t, d), minval=math.log(1e-3), maxval=math.log(1e-1)))
        return x, dt, -jnp.tile(jnp.arange(1.0, n + 1)[None], (d, 1)), B, C

    def call(implementation):
        return lambda *arrays: selective_scan(*arrays, implementation=implementation)[0]

    others = {"associative_scan": plain.selective_associative, "lax.scan": plain.selective_scan}
    return _case("selective_scan", f"B{b} T{t} D{d} N{n}", inputs, call, ("recurrent",), others)


def _linear_attention(b, t, h, width, decay, read_before_write=False):
    """`decay`: "no", "head", "channel" or "value". `read_before_write` comes with a bonus, as in RWKV-6."""
    axis = {"value": "value_log_decay"}.get(decay, "log_decay")
    gates = {"no": (), "head": (b, t, h)}.get(decay, (b, t, h, width))

    def inputs(key):
        keys = jax.random.split(key, 5)
        q, k, v = (jax.random.normal(key, (b, t, h, width)) for key in keys[:3])
        arrays = (q, k / width**0.5, v)
        if gates:
            arrays += (jax.nn.log_sigmoid(jax.random.normal(keys[3], gates) + 4.0),)
        return (*arrays, jax.random.normal(keys[4], (h, width))) if read_before_write else arrays

    def arguments(*rest):
        named = dict(zip((axis, "bonus") if gates else (), rest, strict=False))
        return named | ({"read_before_write": True} if read_before_write else {})

    def call(implementation):
        return lambda q, k, v, *rest: linear_attention(q, k, v, **arguments(*rest), scale=1.0, implementation=implementation)[0]

    others = {"lax.scan": lambda q, k, v, *rest: plain.linear_attention_scan(q, k, v, **arguments(*rest))}
    if decay in ("head", "channel") and not read_before_write:
        others["associative_scan"] = plain.linear_attention_associative
    if decay == "head":
        others["quadratic"] = plain.linear_attention_quadratic
    label = f"{decay} decay{', read before write' if read_before_write else ''} B{b} T{t} H{h} K{width}"
    return _case("linear_attention", label, inputs, call, LINEAR_ATTENTION, others)


def _delta(b, t, h, width, decay):
    """`decay`: "no", "head" or "channel": DeltaNet, Gated DeltaNet, Kimi delta attention."""
    gates = {"no": (), "head": (b, t, h), "channel": (b, t, h, width)}[decay]

    def inputs(key):
        keys = jax.random.split(key, 5)
        q, k, v = (jax.random.normal(key, (b, t, h, width)) for key in keys[:3])
        arrays = q, l2_normalise(k, 1e-6), v, jax.nn.sigmoid(jax.random.normal(keys[3], (b, t, h)))
        return (*arrays, jax.nn.log_sigmoid(jax.random.normal(keys[4], gates) + 4.0)) if gates else arrays

    def call(implementation):
        return lambda *arrays: delta_rule(*arrays, scale=1.0, implementation=implementation)[0]

    label = f"delta rule, {decay} decay B{b} T{t} H{h} K{width}"
    return _case("linear_attention", label, inputs, call, LINEAR_ATTENTION, {"lax.scan": plain.delta_scan})


def _attention(b, t, h, width, scores):
    bias = 0.0 if scores == "softmax" else -math.log(t)

    def inputs(key):
        return tuple(jax.random.normal(key, (b, t, h, width)) for key in jax.random.split(key, 3))

    def call(implementation):
        return lambda q, k, v: attention(q, k, v, scores=scores, bias=bias, implementation=implementation)[0]

    if scores == "softmax":
        others = {"dot_product_attention": plain.softmax_dot_product}
    else:
        others = {"whole matrix": lambda q, k, v: plain.sigmoid_matrix(q, k, v, bias)}
    return _case("attention", f"{scores} B{b} T{t} H{h} D{width}", inputs, call, ("blockwise",), others)


def _convolution(b, t, d, width):
    def inputs(key):
        one, two = jax.random.split(key)
        return jax.random.normal(one, (b, t, d)), jax.random.normal(two, (width, d)) / width

    def call(implementation):
        return lambda x, weight: short_convolution(x, weight, implementation=implementation)[0]

    return _case("convolution", f"B{b} T{t} D{d} W{width}", inputs, call, ("xla",), {"conv_general_dilated": plain.convolution_xla})


def cases(quick: bool) -> tuple[Case, ...]:
    """All of them; `quick` takes one small shape per op and kind."""
    if quick:
        return (
            _recurrence(2, 512, 256),
            _selective(1, 512, 128, 16),
            _linear_attention(1, 512, 4, 64, "head"),
            _linear_attention(1, 512, 4, 64, "channel"),
            _linear_attention(1, 512, 4, 64, "no"),
            _linear_attention(1, 512, 4, 64, "value"),
            _linear_attention(1, 512, 4, 64, "channel", read_before_write=True),
            _delta(1, 512, 4, 64, "head"),
            _delta(1, 512, 4, 64, "channel"),
            _attention(1, 1024, 4, 64, "softmax"),
            _attention(1, 1024, 4, 64, "sigmoid"),
            _convolution(2, 512, 256, 4),
        )
    return (
        _recurrence(1, 1024, 512),
        _recurrence(4, 1024, 1024),
        _recurrence(4, 4096, 512),
        _recurrence(1, 16384, 1024),
        _selective(2, 4096, 512, 16),
        _linear_attention(2, 2048, 4, 64, "head"),
        _linear_attention(1, 2048, 8, 128, "head"),
        _linear_attention(2, 2048, 4, 64, "channel"),
        _linear_attention(1, 2048, 8, 128, "channel"),
        _linear_attention(2, 2048, 4, 64, "no"),
        _linear_attention(2, 2048, 4, 64, "value"),
        _linear_attention(2, 2048, 4, 64, "channel", read_before_write=True),
        _delta(2, 2048, 4, 64, "no"),
        _delta(2, 2048, 4, 64, "head"),
        _delta(1, 2048, 8, 128, "head"),
        _delta(2, 2048, 4, 64, "channel"),
        _delta(1, 2048, 8, 128, "channel"),
        _attention(1, 1024, 8, 64, "softmax"),
        _attention(1, 4096, 8, 64, "softmax"),
        _attention(1, 4096, 8, 64, "sigmoid"),
        _convolution(4, 2048, 512, 4),
    )
