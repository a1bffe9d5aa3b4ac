"""The checks of the law. Each takes a mixer under test and raises AssertionError."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqzoo import mixers
from seqzoo.testing.comparison import RELATIVE, assert_close, error, rms
from seqzoo.testing.flops import matmul_flops
from seqzoo.testing.mixer_under_test import BATCH, LENGTH, REAL, SEGMENT_IDS, MixerUnderTest, Run, rounded, split_floats

# (row, first token, after the last one) of the documents that start in these rows.
DOCUMENTS = ((0, 2, 7), (0, 7, 8), (0, 8, 17), (0, 17, 37), (0, 38, 43), (1, 20, 44))
# After leading padding, at a document's border, in padding, in a document, before trailing padding.
CUTS = (1, 7, 11, 24, 43)
# Accepted error at inputs of other sizes: where one weight is nearly all, its gradient is a difference (do . v - do . o of a mean).
AT_OTHER_SCALES = 2e-4
CONDITIONING = 10  # accepted error over the change of the definition when its float32 arguments are rounded once more


def check_precision(it: MixerUnderTest) -> None:
    """Float32 and whole equals float64 step by step: values, final state, all gradients, over packed documents and padding.

    Where rounding the float32 inputs, parameters and state by one digit moves the definition by more than the tolerance of float32,
    that much is accepted, at most AT_OTHER_SCALES.
    """
    x, dy, dstate = it.inputs(3)
    sides = (SEGMENT_IDS, dy * REAL, dstate)
    whole = it(it.state, x, *sides)
    wanted = _without_padding(it.definition(it.state, x, *sides))
    tolerance = RELATIVE["float32"]
    if _largest(_without_padding(whole), wanted) > tolerance:
        others = [rounded((it.params, it.state, x), seed) for seed in (1, 2)]
        moved = [_without_padding(it.definition(state, row, *sides, params=params)) for params, state, row in others]
        tolerance = min(AT_OTHER_SCALES, max(tolerance, *(_largest(run, wanted) for run in moved)))
    assert_close(_without_padding(whole), wanted, tolerance=tolerance, what=f"{it}, whole in float32 against the definition")
    assert np.all(np.isfinite(whole.y)), f"{it}: outputs at padding must be finite"
    assert np.abs(whole.x * ~REAL).max() == 0, f"{it}: inputs at padding must have no gradient"


def check_scales(it: MixerUnderTest, tolerance: float = AT_OTHER_SCALES) -> None:
    """Float32 stays near float64 at inputs of other sizes.

    Inputs times 1e-4, 30 and 1000; all tokens of a row equal; one token of each row 30 times as large as the others. An error
    of a gradient counts in relation to that gradient, or if that is larger to the whole gradient, both in units of the size of what
    they are gradients of: parts that vanish do not count. Where rounding the float32 inputs, parameters and state by one digit
    moves the float64 definition itself, CONDITIONING times as much is accepted.
    """
    x, dy, dstate = it.inputs(3)
    huge = np.where(np.arange(LENGTH)[None, :, None] == np.array([20, 9])[:, None, None], 30 * x, x)
    rows = {"times 1e-4": 1e-4 * x, "times 30": 30 * x, "times 1000": 1000 * x, "all equal": np.tile(x[:, :1], (1, LENGTH, 1))}
    for name, row in {**rows, "one 30 times as large": huge}.items():
        row = row.astype(np.float32)
        sides = (row, SEGMENT_IDS, dy * REAL, dstate)
        wanted = _without_padding(it.definition(it.state, *sides))
        variables = (jax.tree.leaves(it.params), [row], split_floats(it.state)[0])
        errors = lambda run, wanted=wanted, variables=variables: _errors(_without_padding(run), wanted, variables)
        found = errors(it(it.state, *sides))
        if max(found.values()) <= tolerance:
            continue
        others = [rounded((it.params, it.state, row), seed) for seed in (1, 2)]
        moved = [errors(it.definition(state, row, *sides[1:], params=params)) for params, state, row in others]
        for leaf, one in found.items():
            limit = max(tolerance, CONDITIONING * max(other[leaf] for other in moved))
            assert one <= limit, f"{it}, inputs {name}: error of {leaf} is {one:.1e}, wanted at most {limit:.1e}"


def check_causality(it: MixerUnderTest) -> None:
    """No output depends on a later input: its gradient is exactly zero there."""
    x, dy, dstate = it.inputs(4)
    ids = np.full((BATCH, LENGTH), 5, np.int32)
    for at in (0, 3, LENGTH // 2):
        only = np.where((np.arange(LENGTH) == at)[None, :, None], dy, np.float32(0))
        gradient = it(it.state, x, ids, only, _zeros(dstate)).x
        assert np.abs(gradient[:, at]).max() > 0, f"{it}: output {at} does not depend on its own input"
        later = np.abs(gradient[:, at + 1 :]).max()
        assert later == 0, f"{it}: output {at} depends on later inputs, by a gradient of {later:.1e}"


def check_split(it: MixerUnderTest, cuts: tuple[int, ...] = CUTS) -> None:
    """Two pieces, one after the other, give the whole: values, final state, and gradients through the state, at any cut.

    A piece is at the start or at the end of a padded row; that must make no difference.
    """
    x, dy, dstate = it.inputs(3)
    for cut in cuts:
        first_at, second_at = (0, cut) if cut % 2 else (LENGTH - cut, 0)
        head = [_pad(a[:, :cut], first_at) for a in (x, SEGMENT_IDS, dy)]
        tail = [_pad(a[:, cut:], second_at) for a in (x, SEGMENT_IDS, dy)]
        head_x, head_ids, head_dy = head
        tail_x, tail_ids, tail_dy = tail
        middle = it(it.state, head_x, head_ids, head_dy, _zeros(dstate)).state
        second = it(middle, tail_x, tail_ids, tail_dy, dstate)
        first = it(it.state, head_x, head_ids, head_dy, second.initial_state)
        joined = lambda a, b, at=(first_at, second_at), cut=cut: np.concatenate(
            [a[:, at[0] : at[0] + cut], b[:, at[1] : at[1] + LENGTH - cut]], axis=1
        )
        pieces = Run(
            joined(first.y, second.y),
            second.state,
            jax.tree.map(np.add, first.params, second.params),
            joined(first.x, second.x),
            first.initial_state,
        )
        assert_close(_without_padding(pieces), _without_padding(it.packed), what=f"{it}, cut at {cut}")


def check_packing(it: MixerUnderTest) -> None:
    """A packed document gives what it gives alone: values and gradients of inputs, after any state of another document too."""
    x, dy, dstate = it.inputs(3)
    packed = it(it.state, x, SEGMENT_IDS, dy, _zeros(dstate))
    # Alone in two rows: after an empty state and leading padding, and after another document's state without any.
    states = jax.tree.map(lambda empty, full: np.stack([np.asarray(empty)[0], full[1]]), it.empty_state(), it.state)
    for row, start, stop in DOCUMENTS:
        length, own = stop - start, (slice(row, row + 1), slice(start, stop))
        two = lambda a, own=own, length=length: np.concatenate([_pad(a[own], LENGTH - length), _pad(a[own], 0)])
        alone = it(states, two(x), two(SEGMENT_IDS), two(dy), _zeros(dstate))
        real = SEGMENT_IDS[own][0] != 0
        for copy, at in enumerate((LENGTH - length, 0)):
            what = f"{it}, tokens {start}:{stop} of row {row}, {('after padding', 'after a state')[copy]}"
            take = lambda a, copy=copy, at=at, length=length, real=real: a[copy, at : at + length][real]
            assert_close((take(alone.y), take(alone.x)), (packed.y[own][0][real], packed.x[own][0][real]), what=what)


def check_padding(it: MixerUnderTest) -> None:
    """NaN and infinities at padding give what zeros there give: outputs of real tokens, final state, all gradients, bit by bit."""
    x, dy, dstate = it.inputs(3)
    wanted = it(it.state, np.where(REAL, x, 0), SEGMENT_IDS, dy, dstate)
    for value in (np.nan, np.inf, -np.inf):
        found = it(it.state, np.where(REAL, x, np.float32(value)), SEGMENT_IDS, dy, dstate)
        assert np.all(np.isfinite(found.y)), f"{it}: outputs at padding must be finite, also with {value} there"
        leaves = jax.tree_util.tree_leaves_with_path(found)
        for (path, leaf), other in zip(leaves, jax.tree.leaves(wanted), strict=True):
            assert np.array_equal(leaf, other), f"{it}: {jax.tree_util.keystr(path)} changes with {value} at padding: clear_padding"


def check_overflow(it: MixerUnderTest, size: float = 1e18) -> None:
    """Documents of huge inputs leave the next ones as they are: outputs, final state, and gradients of inputs.

    Not gradients of parameters, which all documents share. `size` is a number whose square is finite: some mixers give their op a
    product of two projections, and the matrix forms need finite arguments.
    """
    x, dy, dstate = it.inputs(3)
    huge = np.isin(np.arange(BATCH * LENGTH).reshape(BATCH, LENGTH, 1), [*range(13, 17), *range(LENGTH, LENGTH + 20)])
    later = REAL & (np.cumsum(huge, axis=1) > 0) & ~huge
    run = lambda x: it(it.state, x, SEGMENT_IDS, dy * later, dstate)
    found, wanted = run(np.where(huge, np.float32(size) * x, x)), run(x)
    kept = lambda run: (np.where(later, run.y, 0), run.state, np.where(later, run.x, 0))
    assert_close(kept(found), kept(wanted), what=f"{it}, after documents of {size:g}")


def check_key(it: MixerUnderTest) -> None:
    """With one key, two pieces give the whole: what is drawn depends on the document and the index inside it, not on the cut."""
    key, x = jax.random.key(it.seed), it.inputs(3)[0]
    forward = lambda params, state, x, ids, key: nnx.merge(it.graphdef, params)(x, state=state, segment_ids=ids, key=key)
    jaxpr = jax.make_jaxpr(forward)(it.params, it.state, x, SEGMENT_IDS, key).jaxpr
    if not any(jaxpr.invars[-1] is used for equation in jaxpr.eqns for used in equation.invars):
        return
    run = jax.jit(forward)
    y, last = run(it.params, it.state, x, SEGMENT_IDS, key)
    plain, _ = run(it.params, it.state, x, SEGMENT_IDS, jax.random.key(it.seed + 1))
    assert np.any(np.asarray(y) != np.asarray(plain)), f"{it}: two keys draw the same"
    for cut in CUTS:
        first, middle = run(it.params, it.state, _pad(x[:, :cut], 0), _pad(SEGMENT_IDS[:, :cut], 0), key)
        second, end = run(it.params, middle, _pad(x[:, cut:], 0), _pad(SEGMENT_IDS[:, cut:], 0), key)
        joined = np.concatenate([first[:, :cut], second[:, : LENGTH - cut]], axis=1)
        assert_close((joined * REAL, end), (np.asarray(y) * REAL, last), what=f"{it}, with a key, cut at {cut}")


def check_state(it: MixerUnderTest) -> None:
    """A state comes back with its shapes and dtypes, has the bytes that are reported, may be donated, and recompiles nothing."""
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), tree)
    wanted, found = shapes(it.empty_state()), shapes(it.packed.state)
    assert wanted == found == shapes(it.state), f"{it}: the state comes back as {found}, wanted {wanted}"
    jax.jit(lambda state: state, donate_argnums=0)(it.empty_state())  # fails if two leaves share a buffer
    x, dy, dstate = it.inputs(5)
    it(it.packed.state, x, SEGMENT_IDS, dy, dstate)
    assert it.traced == 1, f"{it}: a state that was returned compiles the mixer again"
    held, counted = sum(leaf.nbytes for leaf in jax.tree.leaves(it.packed.state)) // BATCH, mixers.state_bytes(it.mixer, 2 * LENGTH)
    assert counted == held, f"{it}: state_bytes says {counted}, the state holds {held}"


def check_finite(it: MixerUnderTest) -> None:
    """Neither inputs a hundred times too large (extreme gates) nor zeros give a NaN: values, state and gradients."""
    x, dy, dstate = it.inputs(6)
    for size in (np.float32(100), np.float32(0)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(it(it.state, size * x, SEGMENT_IDS, dy, dstate)):
            assert np.all(np.isfinite(leaf)), f"{it}: {jax.tree_util.keystr(path)} is not finite with inputs times {size}"


def check_defaults(it: MixerUnderTest) -> None:
    """Without a state and ids a mixer starts empty, takes the row for one document, and returns no state."""
    x, dy, dstate = it.inputs(7)
    y, state = jax.jit(lambda params, x: nnx.merge(it.graphdef, params)(x))(it.params, x)
    assert state is None, f"{it}: no state went in, {state} came out"
    assert_close(y, it(it.empty_state(), x, np.ones((BATCH, LENGTH), np.int32), dy, dstate).y, what=f"{it}, without a state")


def check_bfloat16(it: MixerUnderTest) -> None:
    """Computed in bfloat16 from float32 parameters it stays inside the table, against float64."""
    x, dy, dstate = it.inputs(3)
    x = np.asarray(x, jnp.bfloat16)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: it.create(dtype=jnp.bfloat16)))
    empty = nnx.merge(graphdef, it.params).init_state(BATCH, 2 * LENGTH)
    run = jax.jit(lambda params, x, state: nnx.merge(graphdef, params)(x, state=state, segment_ids=jnp.asarray(SEGMENT_IDS)))
    y, _ = run(it.params, x, empty)
    assert y.dtype == jnp.bfloat16, f"{it}: outputs are {y.dtype}, wanted bfloat16"
    wanted = it.definition(it.empty_state(), x.astype(np.float32), SEGMENT_IDS, dy, dstate).y
    assert_close(np.asarray(y, np.float64) * REAL, wanted * REAL, tolerance=RELATIVE["bfloat16"], what=f"{it}, in bfloat16")


def check_flops(it: MixerUnderTest) -> None:
    """`flops` is within 2 % of the definition's matrix products: what grows with t, and the causal half of what grows with t^2.

    Counted where the mixer has `implementation="reference"`; with a window, the definition scores pairs that it then masks.
    """
    if it.settings.get("window"):
        return
    has_reference = "implementation" in it.factory.Settings.model_fields
    mixer = nnx.eval_shape(lambda: it.create(**{"implementation": "reference"} if has_reference else {}))
    graphdef, params = nnx.split(mixer)

    def products(length):
        x = jax.ShapeDtypeStruct((BATCH, length, it.d_model), jnp.float32)
        return matmul_flops(jax.make_jaxpr(lambda params, x: nnx.merge(graphdef, params)(x)[0])(params, x).jaxpr)

    once, twice, four = products(64), products(128), products(256)
    for length, less, more in ((64, once, twice), (128, twice, four)):
        square = max(0, (more - 2 * less) / 2)
        wanted = less - square + square * (length + 1) / (2 * length)
        counted = mixer.flops(BATCH, length)
        assert abs(counted / wanted - 1) < 0.02, f"{it}: flops({BATCH}, {length}) is {counted}, the definition has {wanted:.0f}"


CHECKS: tuple[Callable[[MixerUnderTest], None], ...] = (
    check_precision,
    check_scales,
    check_causality,
    check_split,
    check_packing,
    check_padding,
    check_overflow,
    check_key,
    check_state,
    check_finite,
    check_defaults,
    check_bfloat16,
    check_flops,
)


def _errors(run: Run, wanted: Run, variables) -> dict[str, float]:
    """The error of each float leaf; those of gradients as `check_scales` says, `variables` being what they are gradients of."""
    gradients = jax.tree.leaves((wanted.params, wanted.x, wanted.initial_state))
    sizes = [max(rms(np.where(np.isfinite(leaf), leaf, 0)), 1e-30) for leaf in jax.tree.leaves(variables)]
    whole = rms(np.concatenate([size * np.ravel(leaf) for size, leaf in zip(sizes, gradients, strict=True)]))
    values = len(jax.tree.leaves((wanted.y, wanted.state)))
    scales = [0.0] * values + [whole / size for size in sizes]
    leaves = zip(jax.tree.leaves(run), jax.tree_util.tree_leaves_with_path(wanted), scales, strict=True)
    return {
        jax.tree_util.keystr(path): error(leaf, reference, scale)
        for leaf, (path, reference), scale in leaves
        if jnp.issubdtype(reference.dtype, jnp.floating)
    }


def _largest(run: Run, wanted: Run) -> float:
    """The largest error of a leaf."""
    return max(float(error(leaf, reference)) for leaf, reference in zip(jax.tree.leaves(run), jax.tree.leaves(wanted), strict=True))


def _zeros(leaves):
    return [np.zeros_like(leaf) for leaf in leaves]


def _pad(tokens, at: int):
    """tokens [b, n, ...] from position `at` of an otherwise zero [b, LENGTH, ...]: one shape for pieces of every length."""
    row = np.zeros((tokens.shape[0], LENGTH, *tokens.shape[2:]), tokens.dtype)
    row[:, at : at + tokens.shape[1]] = tokens
    return row


def _without_padding(run: Run) -> Run:
    """Outputs with padding set to zero: only real tokens are compared."""
    return run._replace(y=np.where(REAL, run.y, 0))
