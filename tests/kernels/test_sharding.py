"""Ops shard themselves over a mesh: the same numbers, also inside a caller's own shard_map; states are exchanged, not sequences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.collectives import moved
from helpers.tolerances import assert_close
from seqzoo.kernels.attention import attention
from seqzoo.kernels.common import explain, sharding
from seqzoo.kernels.convolution import short_convolution
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_attention.delta_rule import delta_rule, l2_normalise
from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.kernels.selective_scan import selective_scan

B, T, H, K = 2, 32, 4, 8
AUTO = jax.sharding.AxisType.Auto


def mesh(**sizes):
    return jax.make_mesh(tuple(sizes.get(axis, 1) for axis in sharding.AXES), sharding.AXES, axis_types=(AUTO,) * 4)


def heads(t, b):
    return (b, t, H, K)


def turning(a, b, **settings):
    """A complex recurrence of real inputs and outputs."""
    h, last = linear_recurrence(jax.lax.complex(a, 0.3 - a**2), jax.lax.complex(b, b[..., ::-1]), **settings)
    return h.real, h.imag, last.real, last.imag


# name: (op, the shapes of its arguments for t tokens and b rows, which of them are decays)
OPS = {
    "attention": (lambda q, k, v, **s: attention(q, k, v, implementation="blockwise", **s)[0], [heads] * 3),
    "attention, one kv head": (
        lambda q, k, v, **s: attention(q, k[:, :, :1], v[:, :, :1], implementation="blockwise", **s)[0],
        [heads] * 3,
    ),
    "linear_attention": (lambda q, k, v, g, **s: linear_attention(q, k, v, log_decay=-(g[..., 0] ** 2), **s), [heads] * 4),
    "linear_attention, decay per channel": (lambda q, k, v, g, **s: linear_attention(q, k, v, log_decay=-(g**2), **s), [heads] * 4),
    "linear_attention, read before write, decays of both axes": (
        lambda q, k, v, g, u, **s: linear_attention(
            q, k, v, log_decay=-(g**2), value_log_decay=-((g * u) ** 2), read_before_write=True, bonus=u[0, 0], **s
        ),
        [heads] * 4 + [lambda t, b: (1, 1, H, K)],
    ),
    "linear_attention, one group": (lambda q, k, v, **s: linear_attention(q[:, :, :1], k[:, :, :1], v, **s), [heads] * 3),
    "linear_attention, delta rule": (
        lambda q, k, v, g, **s: delta_rule(q, l2_normalise(k, 1e-6), v, jnp.tanh(g[..., 0]) ** 2, -(g[..., 0] ** 2), **s),
        [heads] * 4,
    ),
    "linear_recurrence": (lambda a, b, **s: linear_recurrence(jnp.tanh(a), b, **s), [heads] * 2),
    "linear_recurrence, reverse": (lambda a, b, **s: linear_recurrence(jnp.tanh(a), b, reverse=True, **s), [heads] * 2),
    "linear_recurrence, one decay": (
        lambda a, b, **s: linear_recurrence(jnp.tanh(a), b, **s),
        [lambda t, b: (1, 1, H, K), heads],
    ),
    "linear_recurrence, one logarithm per row": (
        lambda g, b, **s: linear_recurrence(-(g**2), b, log=True, **s),
        [lambda t, b: (b, 1, H, K), heads],
    ),
    "linear_recurrence, complex, one decay, reverse": (
        lambda a, b, **s: turning(jnp.tanh(a), b, reverse=True, **s),
        [lambda t, b: (1, 1, H, K), heads],
    ),
    "linear_recurrence, complex": (lambda a, b, **s: turning(jnp.tanh(a), b, **s), [heads] * 2),
    "selective_scan": (
        lambda x, dt, a, bs, cs, d, **s: selective_scan(x, dt**2, -jnp.exp(a), bs, cs, D=d, **s),
        [lambda t, b: (b, t, K)] * 2 + [lambda t, b: (K, 3)] + [lambda t, b: (b, t, 3)] * 2 + [lambda t, b: (K,)],
    ),
    "short_convolution": (
        lambda x, w, bias, **s: short_convolution(x, w, bias, **s),
        [lambda t, b: (b, t, K), lambda t, b: (4, K), lambda t, b: (K,)],
    ),
}
# Variants of an op follow a comma; they run on one of the meshes by default.
MESHES = ({"fsdp": 2, "seq": 2, "tensor": 2}, {"seq": 8})
on_meshes = pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param(name, sizes, id=f"{name}-{sizes}", marks=pytest.mark.slow if ", " in name and sizes is MESHES[1] else ())
        for name in OPS
        for sizes in MESHES
    ],
)
one_of_each = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if ", " in name else ()) for name in OPS])


def arrays(name, t=T, b=B):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.standard_normal(shape(t, b)), jnp.float32) for shape in OPS[name][1]]


def segments(t=T, b=B):
    """Documents that cross the borders of pieces, one that starts on a border, padding, an id that comes back."""
    ids = np.repeat([[1, 2, 0, 1], [4, 4, 4, 3]], t // 4, axis=1)[:b]
    ids[:, : t // 16] = 0
    return jnp.asarray(ids, jnp.int32)


def pulled(op, *arguments):
    """Outputs, and gradients of a projection of them."""

    def loss(*arguments):
        outputs = jax.tree.leaves(op(*arguments))
        return sum(jnp.sum(o * jnp.cos(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape)) for o in outputs), outputs

    (_, outputs), gradients = jax.value_and_grad(loss, argnums=tuple(range(len(arguments))), has_aux=True)(*arguments)
    return outputs, gradients


@on_meshes
def test_cut_over_a_mesh_an_op_gives_what_it_gives_on_one_device(name, sizes):
    """Whole rows on one device against pieces of 16 tokens, and of 4: shorter than documents and chunks."""
    op = functools.partial(OPS[name][0], segment_ids=segments())
    whole = jax.jit(functools.partial(pulled, op))(*arrays(name))
    with jax.set_mesh(mesh(**sizes)):
        said = explain(op, *arrays(name))
        cut = jax.jit(lambda *a: pulled(op, *a))(*arrays(name))
    assert any(f"time over seq={sizes['seq']}" in line for line in said if not line.startswith("documents")), said
    assert_close(cut, whole, what=name)


def compiled(op, *arguments):
    """The forward and backward pass, compiled."""
    return jax.jit(lambda *a: pulled(op, *a)).lower(*arguments).compile()


@one_of_each
def test_time_sharding_moves_states_not_sequences(name):
    """Traffic must not grow with t, except attention's keys and values, from device to device and never to all at once."""
    totals, over = [], mesh(seq=4)
    with jax.set_mesh(over):
        for t in (128, 512):  # pieces of whole blocks
            placed = [
                jax.device_put(x, jax.NamedSharding(over, jax.P(None, "seq") if x.ndim > 2 and x.shape[1] == t else jax.P()))
                for x in arrays(name, t)
            ]
            totals.append(moved(compiled(OPS[name][0], *placed)))
    short, long = totals
    assert short, "time is cut, so something must travel"
    if name.startswith("attention"):
        assert 3.9 < long.pop("collective-permute") / short.pop("collective-permute") < 4.1
    assert long == short


@one_of_each
@pytest.mark.parametrize("held", [("replica", "fsdp", "seq", "tensor"), ("fsdp",), ("seq",)], ids=str)
def test_inside_a_callers_shard_map_an_op_differentiates(name, held):
    """Axes that the caller holds are left to him; the others are used as ever."""
    op = OPS[name][0]
    rows = [jax.P("fsdp") if "fsdp" in held and x.ndim > 2 and len(x) == B else jax.P() for x in arrays(name)]
    out = jax.P("fsdp") if "fsdp" in held else jax.P()
    mapped = jax.shard_map(lambda *a: jax.tree.leaves(op(*a)), in_specs=tuple(rows), out_specs=out, axis_names=set(held))
    whole = jax.jit(functools.partial(pulled, op))(*arrays(name))
    with jax.set_mesh(mesh(fsdp=2, seq=2, tensor=2)):
        cut = jax.jit(lambda *a: pulled(mapped, *a))(*arrays(name))
    assert_close(cut, whole, what=f"{name} in {held}")


@pytest.mark.parametrize("name", OPS)
def test_axes_that_do_not_divide_are_not_sharded(name):
    """One row and one token, as in decoding, on a mesh that cuts everything."""
    op, few = OPS[name][0], arrays(name, t=1, b=1)
    whole = jax.jit(op)(*few)
    with jax.set_mesh(mesh(fsdp=2, seq=2, tensor=2)):
        said = explain(op, *few)
        assert_close(jax.jit(lambda *a: op(*a))(*few), whole, what=name)
    assert any("fsdp=2 unused (rows: 1)" in line and "seq=2 unused (time: 1)" in line for line in said), said


def test_an_explicit_axis_is_refused_by_name():
    explicit = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(explicit), pytest.raises(ValueError, match=r"mesh axis 'fsdp' has type Explicit, wanted Auto.*axis_types="):
        linear_recurrence(*arrays("linear_recurrence"))


def test_other_mesh_axes_are_left_to_the_partitioner():
    """A project whose axes have other names: nothing is gathered from its rows."""
    q = arrays("linear_attention", b=8)
    foreign = jax.make_mesh((8,), ("data",), axis_types=(AUTO,))
    op = OPS["linear_attention"][0]
    whole = jax.jit(functools.partial(pulled, op))(*q)
    with jax.set_mesh(foreign):
        placed = [jax.device_put(x, jax.NamedSharding(foreign, jax.P("data"))) for x in q]
        assert explain(op, *placed)[-1] == "linear_attention: not sharded"
        assert_close(jax.jit(lambda *a: pulled(op, *a))(*placed), whole)
        assert "all-gather" not in moved(compiled(op, *placed))


def test_explain_names_the_implementation():
    said = explain(functools.partial(linear_recurrence, implementation="chunkwise"), *arrays("linear_recurrence"))
    assert said == ["linear_recurrence: implementation='chunkwise'", "linear_recurrence: not sharded"]
