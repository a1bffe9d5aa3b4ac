"""S_t = Diag(exp g_t) S_{t-1} Diag(exp gv_t) + b_t (a_t^T S_{t-1}) + k_t v_t^T, o_t = scale S_t^T q_t in every implementation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import scan_cases
from helpers.scan_cases import IDS, VIOLENT
from helpers.tolerances import RELATIVE, assert_close, rms
from seqzoo.kernels.common import explain, segments
from seqzoo.kernels.linear_attention import linear_attention

# "before" reads before the write, with a bonus, under a decay per head; "all" does so under decays of both axes. "delta" and
# "gated delta" (per head) take away what the key finds; "low rank" has an a and a b of their own, under a decay per channel.
DECAYS = ["none", "constant", "head", "channel", "value", "before", "all", "delta", "gated delta", "low rank"]
GATES = ("log_decay", "value_log_decay")
PER_TOKEN = ("q", "k", "v", "a", "b", *GATES)
IMPLEMENTATIONS = ["recurrent", "chunkwise"]
BOTH = "recurrent_forward_chunkwise_backward"
CHUNK = 8
LENGTH = 53  # seven chunks of "chunkwise" in two blocks, the last one short


def op(*, bonus=None, **arrays):
    return linear_attention(**arrays, bonus=bonus, read_before_write=bonus is not None)


everything = functools.partial(scan_cases.everything, op)
exact = functools.partial(scan_cases.exact, op)


def draw(decay="head", *, batch=2, length=LENGTH, groups=1, heads=2, k=6, v=5, violent=None, seed=0):
    """float32 arrays by argument name; every 17th token's log decay is `violent`."""
    random = np.random.default_rng(seed)
    arrays = {name: random.normal(size=(batch, length, groups, k)) for name in ("q", "k")}
    arrays["v"] = random.normal(size=(batch, length, heads, v))
    arrays["initial_state"] = random.normal(size=(batch, heads, k, v))
    per_head = (batch, length, heads)
    shapes = {"constant": (heads,)} | dict.fromkeys(("head", "before", "gated delta"), per_head)
    shapes |= dict.fromkeys(("channel", "all", "low rank"), (*per_head, k))
    if decay in shapes:
        arrays["log_decay"] = -random.uniform(0, 0.5, shapes[decay])
    if decay in ("value", "all"):
        arrays["value_log_decay"] = -random.uniform(0, 0.5, (*per_head, v))
    if decay in ("before", "all"):
        arrays["bonus"] = random.normal(size=(heads, k))
    if decay in ("delta", "gated delta"):
        arrays["a"] = -arrays["k"] / np.linalg.norm(arrays["k"], axis=-1, keepdims=True)
        arrays["k"] = -random.uniform(0, 2, (batch, length, groups, 1)) * arrays["a"]
    if decay == "low rank":
        arrays |= {name: 0.3 * random.normal(size=(batch, length, groups, k)) for name in ("a", "b")}
    for name in ("log_decay", "value_log_decay"):
        if name in arrays and violent is not None:
            arrays[name][:, 3::17] = violent
    return {name: x.astype(np.float32) for name, x in arrays.items()}


@pytest.mark.parametrize("decay", DECAYS)
def test_the_reference_is_the_formula(decay):
    arrays = draw(decay, batch=1, length=4, groups=2, heads=4)
    o, last = op(**arrays, implementation="reference", scale=0.7)
    s = np.asarray(arrays["initial_state"][0], np.float64)
    g = np.broadcast_to(arrays["log_decay"], (1, 4, 4)) if decay == "constant" else arrays.get("log_decay", np.zeros((1, 4, 4)))
    g_v = arrays.get("value_log_decay", np.zeros((1, 4, 4, 1)))
    for t in range(4):
        for h in range(4):
            q, k, v = arrays["q"][0, t, h // 2], arrays["k"][0, t, h // 2], arrays["v"][0, t, h]
            before = s[h].copy()
            keep = [np.diag(np.broadcast_to(np.exp(x[0, t, h]), n)) for x, n in ((g, 6), (g_v, 5))]
            s[h] = keep[0] @ s[h] @ keep[1] + np.outer(k, v)
            if "a" in arrays:
                s[h] += np.outer(arrays.get("b", arrays["k"])[0, t, h // 2], arrays["a"][0, t, h // 2] @ before)
            read = before + np.diag(arrays["bonus"][h]) @ np.outer(k, v) if "bonus" in arrays else s[h]
            assert_close(o[0, t, h], 0.7 * q @ read)
    assert_close(last[0], s)


# BOTH joins the forward pass of one to the backward pass of the other: two families of decays by default, all in the slow tier.
BOTH_CASES = [pytest.param(BOTH, d, marks=() if d in ("value", "low rank") else pytest.mark.slow) for d in DECAYS]


@pytest.mark.parametrize(("implementation", "decay"), [*itertools.product(IMPLEMENTATIONS, DECAYS), *BOTH_CASES])
def test_values_final_state_and_gradients_are_the_references(implementation, decay):
    arrays = draw(decay, groups=2, heads=4)
    assert_close(everything(arrays, implementation=implementation, chunk_size=CHUNK), exact(arrays))


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, BOTH])
@pytest.mark.parametrize("length", [1, 17, *(pytest.param(length, marks=pytest.mark.slow) for length in (2, 16))])
def test_rows_shorter_than_a_chunk_are_the_references(implementation, length):
    arrays = draw("channel", length=length)
    assert_close(everything(arrays, implementation=implementation), exact(arrays))


@pytest.mark.parametrize(("implementation", "decay"), [(BOTH, "delta"), ("chunkwise", "low rank")])
def test_states_too_large_to_be_kept_for_every_chunk_are_found_again(implementation, decay):
    arrays = draw(decay, batch=1, length=70, k=24, v=16)
    assert_close(everything(arrays, implementation=implementation, chunk_size=4), exact(arrays))


@pytest.mark.slow
@pytest.mark.parametrize(("decay", "groups"), [("head", 1), ("head", 8), ("channel", 8), ("value", 8)])
def test_gradients_of_many_wide_heads_are_the_same_in_both_forms(decay, groups):
    """At sizes of real models, where XLA fuses and threads otherwise: jaxlib 0.10.2 has crashed there on sums over seven axes."""
    arrays = draw(decay, batch=4, length=512, groups=groups, heads=8, k=64, v=64)
    one, other = (everything(arrays, implementation=implementation, scale=0.01) for implementation in IMPLEMENTATIONS)
    assert_close(one, other, tolerance=2 * RELATIVE["float32"])


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, pytest.param(BOTH, marks=pytest.mark.slow)])
def test_the_chunk_size_changes_nothing(implementation):
    arrays = draw("channel", length=13)
    wanted = exact(arrays)
    for chunk in (1, 4, 64):
        assert_close(everything(arrays, implementation=implementation, chunk_size=chunk), wanted, what=f"chunk_size={chunk}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("decay", ["head", "channel", "value", "all", "low rank"])
def test_gate_rows_stay_within_the_tolerance_of_mild_rows(implementation, decay):
    mild = exact(draw(decay, groups=2, heads=4))  # the shapes of other tests, which have compiled them
    for gate in VIOLENT:
        arrays = draw(decay, groups=2, heads=4, violent=gate)
        got = everything(arrays, implementation=implementation, chunk_size=CHUNK)
        scan_cases.assert_close_on_the_scale_of(mild, got, exact(arrays), f"at {gate}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("decay", ["head", "channel", "all", "low rank"])
def test_rows_with_every_gate_violent_are_finite_and_right(implementation, decay):
    for gate in VIOLENT[1:]:
        arrays = draw(decay, groups=2, heads=4)
        arrays["log_decay"][:] = gate
        got, wanted = everything(arrays, implementation=implementation, chunk_size=CHUNK), exact(arrays)
        for name, x in got.items():
            assert np.isfinite(x).all(), f"{name} at {gate}"
            scale = rms(wanted["output"]) if name in (*GATES, "initial_state") else 0.0
            assert_close(x, wanted[name], scale=scale, what=f"{name} at {gate}")
        if gate == -np.inf:
            zero = {name for name in got if name in GATES} | ({"initial_state"} if decay not in ("all", "low rank") else set())
            assert not any(np.any(got[name]) for name in zero)  # a read before the write sees the initial state once


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "decay",
    [
        d if d in ("constant", "channel", "all", "gated delta", "low rank") else pytest.param(d, marks=pytest.mark.slow)
        for d in DECAYS
    ],
)
def test_packed_documents_give_what_each_gives_alone(implementation, decay):
    arrays = draw(decay, batch=3, length=IDS.shape[1])
    weights = scan_cases.projection((arrays["v"], arrays["initial_state"]))
    weights[1][:] = 0
    initial_segment = np.array([3, 1, 0], np.int32)  # row 0's state belongs to another document, row 1's to its first
    got = everything(arrays, IDS, initial_segment, weights, implementation=implementation, chunk_size=4)
    wanted = {name: np.zeros(x.shape) for name, x in arrays.items()}
    wanted["output"] = np.zeros(arrays["v"].shape)
    numbers = np.asarray(segments.relabel(jnp.asarray(IDS), jnp.asarray(initial_segment)))
    per_token = tuple(name for name in PER_TOKEN if name in arrays and arrays[name].ndim > 1)
    for row in range(3):
        for document in set(numbers[row]) - {-1}:
            where = np.flatnonzero(numbers[row] == document)
            alone = {n: x[row : row + 1, where] if n in per_token else x for n, x in arrays.items()}
            carried = document == 0
            alone["initial_state"] = arrays["initial_state"][row : row + 1] * carried
            # Padded on the right by hand, with tokens that write and keep nothing, so that all documents share one compilation.
            extra = IDS.shape[1] - len(where)
            padded = {
                n: np.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)) if n in per_token else x for n, x in alone.items()
            }
            cotangent = np.pad(weights[0][row : row + 1, where], [(0, 0), (0, extra), (0, 0), (0, 0)])
            result = exact(padded, None, None, (cotangent, weights[1][row : row + 1]))
            for name, x in result.items():
                if name == "last":
                    continue
                if name in arrays and name not in per_token and name != "initial_state":
                    wanted[name] += x
                elif name == "initial_state":
                    wanted[name][row] += x[0] * carried
                else:
                    wanted[name][row, where] = x[0, : len(where)]
    for name, x in wanted.items():
        if name in GATES and decay != "constant":
            starts = np.asarray(segments.starts(jnp.asarray(IDS), jnp.asarray(initial_segment)))
            assert not np.any(np.asarray(got[name])[starts])
        assert_close(got[name], x, what=name)
    for name in ("output", *per_token):
        assert not np.any(np.asarray(got[name])[IDS == 0]), f"{name} at padding"


# In chunks of four: each place in a chunk, the first and the last chunk, and some between. Every cut compiles two shapes.
SOME_CUTS = (1, 2, 3, 4, 5, 18, 23, 35, 36)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("decay", "cuts"),
    [
        ("none", (1, 7)),
        ("all", (6, 15)),
        *(pytest.param(decay, SOME_CUTS, marks=pytest.mark.slow) for decay in DECAYS),
        *(pytest.param(decay, range(1, 37), marks=pytest.mark.exhaustive) for decay in DECAYS),
    ],
)
def test_a_row_cut_anywhere_is_the_whole_row(implementation, decay, cuts):
    arrays = draw(decay, batch=3, length=IDS.shape[1])
    initial = np.array([3, 1, 0], np.int32)
    run = jax.jit(functools.partial(op, implementation=implementation, chunk_size=4))
    whole = run(**arrays, segment_ids=IDS, initial_segment=initial)
    per_token = [name for name, x in arrays.items() if x.ndim > 2 and name != "initial_state"]
    for at in cuts:
        assert_close(scan_cases.cut_in_two(run, arrays, per_token, at, IDS, initial), whole, what=f"cut at {at}")


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_a_head_decay_beside_a_value_decay_is_a_part_of_it(implementation):
    arrays = draw("value", length=9)
    g = draw("head", length=9, seed=1)["log_decay"]
    folded = {**arrays, "value_log_decay": arrays["value_log_decay"] + g[..., None]}
    assert_close(op(**arrays, log_decay=g, implementation=implementation), op(**folded, implementation=implementation))


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("decay", ["all", "gated delta", pytest.param("channel", marks=pytest.mark.slow)])
def test_nothing_huge_leaks_from_the_document_before(implementation, decay):
    arrays = draw(decay, length=24)
    ids = np.repeat(np.array([[1, 2, 1]], np.int32), 8, axis=1).repeat(2, axis=0)
    loud = {name: x.copy() for name, x in arrays.items()}
    loud["v"][:, 8:16] = 1e30
    loud["initial_state"][:] = 1e30
    other = np.array([9, 9], np.int32)
    quiet, noisy = (everything(x, ids, other, implementation=implementation) for x in (arrays, loud))
    for name in ("output", "q", "k", "v", "log_decay"):
        np.testing.assert_array_equal(np.asarray(quiet[name])[:, 16:], np.asarray(noisy[name])[:, 16:])
    np.testing.assert_array_equal(quiet["last"], noisy["last"])
    assert not np.any(noisy["initial_state"])


def test_without_initial_segment_the_state_belongs_to_the_first_document():
    arrays = draw(length=9)
    ids = np.array([[0, 0, 7, 7, 7, 7, 7, 7, 7]] * 2, np.int32)
    o, last = linear_attention(**arrays, segment_ids=ids)
    wanted = linear_attention(**scan_cases.at(arrays, ("q", "k", "v", "log_decay"), slice(2, None)))
    assert_close((o[:, 2:], last), wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("decay", [d if d in ("all", "low rank") else pytest.param(d, marks=pytest.mark.slow) for d in DECAYS])
def test_float64_stays_float64(implementation, decay):
    arrays = draw(decay, groups=2, heads=4)
    got = scan_cases.everything64(op, arrays, implementation=implementation, chunk_size=CHUNK)
    assert_close(got, exact(arrays), tolerance=RELATIVE["float64"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_inputs_give_bfloat16_outputs_and_float32_states(implementation):
    arrays = draw("channel")
    low = {name: jnp.asarray(x, jnp.bfloat16) if name in "qkv" else x for name, x in arrays.items()}
    got = everything(low, implementation=implementation, chunk_size=CHUNK)
    dtypes = {name: str(got[name].dtype) for name in ("output", "q", "last")}
    assert dtypes == {"output": "bfloat16", "q": "bfloat16", "last": "float32"}
    assert_close(got, exact({n: np.asarray(x, np.float32) for n, x in low.items()}), tolerance=RELATIVE["bfloat16"])


@pytest.mark.parametrize("implementation", ["chunkwise", pytest.param("recurrent", marks=pytest.mark.slow)])
def test_vmap_checkpoint_and_scan_compose_with_gradients(implementation):
    arrays = draw("head", batch=2, length=9)

    def plain(x):
        return linear_attention(**x, implementation=implementation, chunk_size=4)

    def total(f):
        return jax.jit(jax.grad(lambda x: sum(jnp.sum(jnp.sin(y)) for y in f(x))))

    def mapped(x):
        return jax.vmap(plain)({n: a[:, None] for n, a in x.items()})

    def scanned(x):
        return jax.lax.scan(lambda c, row: (c, plain(jax.tree.map(lambda a: a[None], row))), None, x)[1]

    wanted = total(plain)(arrays)
    for f in (mapped, scanned, jax.checkpoint(plain)):
        assert_close(total(f)(arrays), wanted)


@pytest.mark.parametrize("decay", [pytest.param("all", marks=pytest.mark.slow), "gated delta"])
def test_the_reference_differentiates_forward_backward_and_forward_over_backward(decay):
    arrays, direction = draw(decay, batch=1, length=6), draw(decay, batch=1, length=6, seed=1)

    def loss(x):
        return sum(jnp.sum(jnp.sin(y)) for y in op(**x, implementation="reference"))

    def dot(x, y):
        return sum(jnp.vdot(x[name], y[name]) for name in x)

    _, forward = jax.jvp(loss, (arrays,), (direction,))
    assert_close(forward, dot(jax.grad(loss)(arrays), direction))
    _, forward_over_backward = jax.jvp(jax.grad(loss), (arrays,), (direction,))
    assert_close(forward_over_backward, jax.grad(lambda x: dot(jax.grad(loss)(x), direction))(arrays))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_batch_sharded_over_an_auto_mesh_gives_equal_numbers(implementation):
    arrays = draw("head", batch=8, length=9)
    scan_cases.assert_a_mesh_changes_nothing(linear_attention, arrays, implementation=implementation, chunk_size=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "chunky"}, "Did you mean 'chunkwise'"),
        ({"chunk_size": 0}, "chunk_size=0, wanted a positive int"),
        ({"k": np.zeros((2, 9, 1, 7), np.float32)}, r"k has shape \(2, 9, 1, 7\), wanted q's \(2, 9, 1, 6\)"),
        ({"q": np.zeros((2, 9, 6), np.float32)}, r"q has shape \(2, 9, 6\), wanted 4 axes"),
        ({"v": np.zeros((2, 8, 2, 5), np.float32)}, r"v has shape \(2, 8, 2, 5\)"),
        ({"v": np.zeros((2, 9, 2, 5), np.int32)}, "v has dtype int32, wanted a floating dtype"),
        ({"log_decay": np.zeros((2, 9, 3), np.float32)}, r"log_decay has shape \(2, 9, 3\), wanted one of"),
        ({"value_log_decay": np.zeros((2, 9, 2), np.float32)}, r"value_log_decay has shape \(2, 9, 2\), wanted v's \(2, 9, 2, 5\)"),
        ({"bonus": np.zeros((2, 6), np.float32)}, "read_before_write=False, wanted read_before_write=True"),
        ({"bonus": np.zeros((1, 6), np.float32), "read_before_write": True}, r"bonus has shape \(1, 6\), wanted \(2, 6\)"),
        ({"initial_state": np.zeros((2, 2, 5, 6), np.float32)}, r"initial_state has shape .* wanted \(2, 2, 6, 5\)"),
        ({"segment_ids": np.zeros((2, 8), np.int32)}, r"segment_ids has shape \(2, 8\)"),
    ],
)
def test_bad_inputs_are_refused_with_what_was_found_and_wanted(change, message):
    arrays = {**draw(length=9), **change}
    with pytest.raises(ValueError, match=message):
        linear_attention(**arrays)


@pytest.mark.parametrize(
    ("size", "implementation", "message"),
    [
        (8, "reference", "reference refused: chunk_size=8, wanted None"),
        (20, "chunkwise", "chunkwise refused: chunk_size=20, wanted a power of 2"),
        (20, ("chunkwise", "reference"), "chunkwise refused: .* reference refused"),
        (20, (), "is empty"),
    ],
)
def test_a_chunk_size_that_no_named_implementation_can_take_is_refused_with_the_reasons(size, implementation, message):
    with pytest.raises(NotImplementedError, match=message):
        linear_attention(**draw(length=9), chunk_size=size, implementation=implementation)


@pytest.mark.parametrize("implementation", [("chunkwise", "recurrent"), None])
def test_the_first_implementation_that_takes_the_inputs_is_used(implementation, monkeypatch):
    monkeypatch.setattr("seqzoo.kernels.linear_attention.defaults.TUNING", {})
    arrays = draw(length=9)
    lines = explain(functools.partial(linear_attention, chunk_size=20, implementation=implementation), **arrays)
    assert lines[0].startswith("linear_attention: implementation='recurrent', chunkwise refused: chunk_size=20")
    wanted = linear_attention(**arrays, implementation="recurrent", chunk_size=20)
    assert_close(linear_attention(**arrays, implementation=implementation, chunk_size=20), wanted)
    assert explain(functools.partial(linear_attention, implementation=("chunkwise", "recurrent")), **arrays)[0].endswith(
        "'chunkwise'"
    )


def test_heads_that_do_not_divide_into_the_groups_are_refused():
    with pytest.raises(ValueError, match="a multiple of q's 2 heads"):
        linear_attention(**draw(groups=2, heads=3))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_training_keeps_states_only_at_the_starts_of_chunks(implementation):
    arrays = draw("channel", batch=1, length=64, heads=1, k=16, v=16)
    closed = jax.make_jaxpr(lambda x: everything(x, implementation=implementation, chunk_size=16))(arrays)
    shapes = [variable.aval.shape for equation in _equations(closed.jaxpr) for variable in equation.outvars]
    states = [np.prod(s) // 256 for s in shapes if s[-2:] == (16, 16)]
    assert max(states) <= 16  # one chunk's states or pairs; all 64 would be O(t k v)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                yield from _equations(inner.jaxpr)
