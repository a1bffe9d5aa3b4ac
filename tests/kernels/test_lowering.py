"""Every op, forward and backward, lowers for platforms that this machine need not have."""

import jax
import jax.numpy as jnp
import pytest

from seqzoo.kernels.attention import attention, empty_cache
from seqzoo.kernels.common import implementations
from seqzoo.kernels.convolution import short_convolution
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.kernels.selective_scan import selective_scan

B, T, H, K, V, D, N = 2, 150, 4, 16, 24, 32, 8  # T crosses the borders of chunks and of attention's small blocks


def _attention(**settings):
    def call(q, k, v, ids, implementation):
        cache = empty_cache(B, T, 2, K, V, q.dtype)
        o, last = attention(q, k, v, initial_state=cache, segment_ids=ids, implementation=implementation, **settings)
        return o, last.values

    return call, [(B, T, H, K), (B, T, 2, K), (B, T, 2, V)]


def _linear_attention(*gates):
    def call(q, k, v, log_decay, initial, ids, implementation):
        return linear_attention(q, k, v, log_decay=log_decay, initial_state=initial, segment_ids=ids, implementation=implementation)

    return call, [(B, T, 2, K), (B, T, 2, K), (B, T, H, V), (B, T, H, *gates), (B, H, K, V)]


def _read_before_write(q, k, v, log_decay, value_log_decay, bonus, initial, ids, implementation):
    return linear_attention(
        q,
        k,
        v,
        log_decay=log_decay,
        value_log_decay=value_log_decay,
        read_before_write=True,
        bonus=bonus,
        initial_state=initial,
        segment_ids=ids,
        implementation=implementation,
    )


def _low_rank(q, k, v, log_decay, a, b, initial, ids, implementation):
    settings = {"initial_state": initial, "segment_ids": ids, "implementation": implementation}
    return linear_attention(q, k, v, log_decay=log_decay, a=a, b=b, **settings)


def _recurrence(a, b, initial, ids, implementation):
    return linear_recurrence(a, b, initial_state=initial, segment_ids=ids, implementation=implementation)


def _selective(x, dt, A, b, c, d, initial, ids, implementation):
    return selective_scan(x, dt, A, b, c, D=d, initial_state=initial, segment_ids=ids, implementation=implementation)


def _convolution(x, weight, bias, initial, ids, implementation):
    return short_convolution(x, weight, bias, initial_state=initial, segment_ids=ids, implementation=implementation)


SCANS = ("reference", "recurrent", "chunkwise", None)
LINEAR_ATTENTION = ("reference", "recurrent", "chunkwise", None)
OPS = {
    "attention, softmax": (*_attention(), ("reference", "blockwise", None)),
    "attention, sigmoid, window": (*_attention(scores="sigmoid", bias=-3.0, window=40), ("reference", "blockwise", None)),
    "linear_attention, head": (*_linear_attention(), LINEAR_ATTENTION),
    "linear_attention, channel": (*_linear_attention(K), LINEAR_ATTENTION),
    "linear_attention, read before write, both decays": (
        _read_before_write,
        [(B, T, 2, K), (B, T, 2, K), (B, T, H, V), (B, T, H, K), (B, T, H, V), (H, K), (B, H, K, V)],
        LINEAR_ATTENTION,
    ),
    "linear_attention, low rank": (
        _low_rank,
        [(B, T, H, K)] * 2 + [(B, T, H, V), (B, T, H)] + [(B, T, H, K)] * 2 + [(B, H, K, V)],
        LINEAR_ATTENTION,
    ),
    "linear_recurrence": (_recurrence, [(B, T, D), (B, T, D), (B, D)], SCANS),
    "selective_scan": (
        _selective,
        [(B, T, D), (B, T, D), (D, N), (B, T, N), (B, T, N), (D,), (B, D, N)],
        ("reference", "recurrent", None),
    ),
    "short_convolution": (_convolution, [(B, T, D), (4, D), (D,), (B, 3, D)], ("reference", "xla", None)),
}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(("op", "implementation"), [(op, name) for op, (*_, names) in OPS.items() for name in names])
def test_values_and_gradients_lower_for_the_platform(op, implementation, platform, monkeypatch):
    call, shapes, _ = OPS[op]
    monkeypatch.setattr(implementations, "platform", lambda: {"cuda": "gpu"}.get(platform, platform))  # what None stands for there

    def scalar(arrays, ids):
        return sum(jnp.sum(result) for result in call(*arrays, ids, implementation))

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    ids = jax.ShapeDtypeStruct((B, T), jnp.int32)
    exported = jax.export.export(jax.jit(jax.value_and_grad(scalar)), platforms=[platform])(arrays, ids)
    assert exported.platforms == (platform,)
    assert [aval.shape for aval in exported.out_avals] == [(), *shapes]
    assert "python_callback" not in exported.mlir_module()  # the host would stall the device
