"""One law for every mixer. Registering a mixer enrols it here; nothing else does, and there are no exemptions."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.law import BATCH, DOCUMENTS, IDS, LENGTH, WIDTH, dots, place, subject
from helpers.tolerances import RELATIVE, assert_close, error
from seqzoo import mixers
from seqzoo.kernels.common import explain, sharding

# Settings that change what a state holds or which terms there are.
VARIANTS = (
    "softmax(window=6, kv_heads=2, qk_norm='rms')",
    "softmax(rope_theta=None, bias=True)",
    "softmax(kv_heads=2, qk_norm='rms', joint_qk_norm=True, output_gate=True)",
    "gated_deltanet(heads=4, key_heads=2, expand_k=0.5, expand_v=1.5)",
    "kda(heads=2, gate_rank=3, gate_bias=True)",
    "sigmoid(length=64, window=50, qk_norm=None)",
    "linear(normalised=False)",
    "gla(heads=2, expand_k=1, expand_v=2)",
    "mamba(conv_size=1, state=3)",
    "mamba2(groups=2, head_dim=16, state=8, norm_before_gate=True)",
    "aaren(heads=1)",
    "based(heads=1, feature_dim=8)",
    "base_conv(width=1)",
    "retnet(heads=2, expand_v=1, rope_theta=None)",
    "lightning(heads=2, head_dim=8)",
    "simple_gla(heads=2, conv_size=None)",
    "hgrn2(heads=2, lower_bound=0.5)",
    "hgrn2(lower_bound=0)",
    "min_gru(expand=1.5, positive=False)",
    "min_lstm(expand=2, bias=False)",
    "hgrn(lower_bound=0.5)",
    "gsa(heads=2, slots=5, expand_v=2)",
    "rwkv6(heads=2, expand_k=0.5, mix_rank=3, decay_rank=5)",
    "lru(state=12, r_min=0.9, r_max=0.99, max_phase=0.3)",
    "s4d(state=6, init='inv', glu='half')",
    "s4d(state=2, glu='none')",
    "s5(state=12, blocks=2, stable=False, glu='full')",
    "s5(blocks=1, glu='none')",
    "rg_lru(expand=1.5, heads=2, conv_size=1)",
    "qlstm(expand=1, conv_size=2, reversed=False)",
    "mega_ema(state=1)",
    "mlstm(heads=2, expand_k=1, input_bias=0.5, gate_cap=None)",
    "mlstm(input_gate='sigmoid', input_bias=0.0)",
    "mlstm(heads=2, input_gate='sigmoid', input_bias=1.0, normalised=False)",
    "flow(heads=2)",
    "norm_attention(heads=1, expand_k=2)",
    "norm_attention(normaliser='softplus')",
    "norm_attention(normaliser='sigmoid')",
    "deltanet(heads=2, expand_k=0.5, conv_size=1, negative_eigenvalues=True)",
    "gated_deltanet(heads=2, expand_k=0.5, expand_v=1, negative_eigenvalues=True)",
    "kda(heads=2, expand_k=0.5, gate_rank=3, negative_eigenvalues=True)",
    "comba(heads=2, feedback=False, correction=0.02, output_gate='silu')",
    "gated_deltaproduct(heads=2, steps=3, negative_eigenvalues=False)",
    "gated_deltaproduct(heads=2, forget=False)",
    "rwkv7(heads=2, expand_k=0.5, first_value=False, decay_rank=3, rate_rank=5, gate_rank=2)",
)


def enrolled(early):
    """Every mixer and variant, those that are not in `early` in the slow tier."""
    marks = lambda spec: () if spec in early else pytest.mark.slow
    specs = [pytest.param(spec, marks=marks(spec)) for spec in (*mixers.names(), *VARIANTS)]
    # A spec's tests follow one another (that is what the scope is for): they share what its subject compiles.
    return pytest.mark.parametrize("spec", specs, scope="module")


every = enrolled(mixers.names())
# By default a ring, a recurrence of numbers, and one of matrices whose first values travel through the layers.
placed = enrolled({"softmax", "s5", "rwkv7"})
CUTS = (
    1,
    7,
    11,
    24,
    43,
)  # behind leading padding, at a document's border, inside padding, inside a document, before trailing padding


def without_padding(pulled, ids=IDS):
    """Outputs mean something at real tokens only."""
    real = jnp.asarray(ids != 0)[..., None]
    return pulled._replace(y=jnp.where(real, pulled.y, 0))


@every
def test_float32_whole_equals_float64_step_by_step(spec):
    """Values, final state, and the gradients of parameters, inputs and initial state, over packed documents and padding."""
    it = subject(spec)
    x, dy, dstate = it.random(3)
    dy = jnp.where(jnp.asarray(IDS != 0)[..., None], dy, 0)
    whole = it.whole(it.params, it.carried, x, jnp.asarray(IDS), dy, dstate)
    definition = it.stepwise(it.carried, x, IDS, dy, dstate)
    assert_close(without_padding(whole), jax.tree.map(jnp.asarray, without_padding(definition)), what=spec)
    assert np.all(np.isfinite(whole.y)), f"{spec}: outputs at padding must be finite"
    assert float(np.abs(np.asarray(whole.x)[IDS == 0]).max()) == 0, f"{spec}: padding must have no gradient"


@every
def test_no_output_depends_on_a_later_input(spec):
    it = subject(spec)
    x, dy, dstate = it.random(4)
    silent = [jnp.zeros_like(leaf) for leaf in dstate]
    ids = jnp.full((BATCH, LENGTH), 5, jnp.int32)
    for at in (0, 3, LENGTH // 2):
        only = jnp.where((jnp.arange(LENGTH) == at)[None, :, None], dy, 0)
        gradient = np.asarray(it.whole(it.params, it.carried, x, ids, only, silent).x)
        assert np.abs(gradient[:, at]).max() > 0, f"{spec}: output {at} does not depend on its own input"
        assert np.abs(gradient[:, at + 1 :]).max() == 0, f"{spec}: output {at} depends on later inputs"


@every
@pytest.mark.parametrize("cut", CUTS)
def test_running_the_pieces_in_turn_gives_the_whole(spec, cut):
    """Values, final state, and gradients through the state. Where in its padded row a piece lies must make no difference."""
    it = subject(spec)
    x, dy, dstate = it.random(3)
    silent = [jnp.zeros_like(leaf) for leaf in dstate]
    heads_at, tails_at = (0, cut) if cut % 2 else (LENGTH - cut, 0)  # where in its row each piece lies
    head = [place(np.asarray(a)[:, :cut], heads_at) for a in (x, IDS, dy)]
    tail = [place(np.asarray(a)[:, cut:], tails_at) for a in (x, IDS, dy)]

    middle = it.whole(it.params, it.carried, *head, silent).state
    last = it.whole(it.params, middle, *tail, dstate)
    first = it.whole(it.params, it.carried, *head, last.carried)

    def joined(a, b):
        return jnp.concatenate([a[:, heads_at : heads_at + cut], b[:, tails_at : tails_at + LENGTH - cut]], axis=1)

    pieces = last._replace(
        y=joined(first.y, last.y),
        x=joined(first.x, last.x),
        params=jax.tree.map(jnp.add, first.params, last.params),
        carried=first.carried,
    )
    assert_close(without_padding(pieces), without_padding(it.packed), what=f"{spec} cut at {cut}")


@every
def test_a_document_packed_behind_others_gives_what_it_gives_alone(spec):
    """Values, and gradients of inputs; behind any state of another document, too."""
    it = subject(spec)
    x, dy, dstate = it.random(3)
    silent = [jnp.zeros_like(leaf) for leaf in dstate]
    packed = it.whole(it.params, it.carried, x, jnp.asarray(IDS), dy, silent)
    for row, start, stop in DOCUMENTS:
        # Alone: two rows, one behind an empty state and leading padding, one behind another document's state without any.
        pick = lambda a, row=row, start=start, stop=stop: np.asarray(a)[row : row + 1, start:stop]
        pair = lambda a, start=start, stop=stop: np.concatenate([place(pick(a), LENGTH - (stop - start)), place(pick(a), 0)])  # noqa: B023
        mixed = jax.tree.map(lambda empty, carried: jnp.stack([empty[0], carried[1]]), it.empty(), it.carried)
        alone = it.whole(it.params, mixed, jnp.asarray(pair(x)), jnp.asarray(pair(IDS)), jnp.asarray(pair(dy)), silent)
        real = pick(IDS)[0] != 0
        for copy, at in ((0, LENGTH - (stop - start)), (1, 0)):
            what = f"{spec}, document {start}:{stop} of row {row}, copy {copy}"
            take = lambda a, at=at, start=start, stop=stop, copy=copy, real=real: np.asarray(a)[copy, at : at + stop - start][real]
            assert_close(take(alone.y), pick(packed.y)[0][real], what=what)
            assert_close(take(alone.x), pick(packed.x)[0][real], what=what)


MESH = jax.make_mesh((1, 2, 2, 2), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)


@placed
def test_cut_over_devices_by_rows_time_and_heads_nothing_changes(spec):
    """Values, final state and all gradients over packed documents, behind a state, on 2 x 2 x 2 devices."""
    it = subject(spec)
    x, dy, dstate = it.random(3)
    tokens = jax.NamedSharding(MESH, jax.P(sharding.BATCH, sharding.TIME))
    x, ids, dy = (jax.device_put(a, tokens) for a in (x, IDS, dy))
    with jax.set_mesh(MESH):
        placed = it.placed(it.params, it.carried, x, ids, dy, dstate)
        said = explain(it._whole, it.params, it.carried, x, ids)
    # Two runs in float32, each within the tolerance of the definition, so within twice that of each other.
    assert_close(without_padding(placed), without_padding(it.packed), tolerance=2 * RELATIVE["float32"], what=spec)
    cut = [line for line in said if "time" in line]
    assert cut and all("time over seq=2" in line for line in cut), said


@every
def test_a_state_comes_back_as_it_went_in_and_nothing_compiles_twice(spec):
    it = subject(spec)
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(it.packed.state) == shapes(it.empty()) == shapes(it.carried)
    x, dy, dstate = it.random(5)
    it.whole(it.params, it.packed.state, x, jnp.asarray(IDS), dy, dstate)
    assert it.whole._cache_size() == 1


@every
def test_inputs_and_gates_of_any_size_give_no_nan(spec):
    """Rows with every gate violent: inputs a hundred times too large."""
    it = subject(spec)
    x, dy, dstate = it.random(6)
    for size in (100.0, 0.0):
        pulled = it.whole(it.params, it.carried, size * x, jnp.asarray(IDS), dy, dstate)
        for leaf in jax.tree.leaves(pulled):
            assert np.all(np.isfinite(leaf)), f"{spec}: not finite with inputs scaled by {size}"


@every
def test_no_state_and_no_ids_mean_an_empty_state_and_one_document(spec):
    it = subject(spec)
    x, dy, dstate = it.random(7)
    mixer = nnx.merge(it.graphdef, it.params)
    y, state = jax.jit(lambda x: mixer(x))(x)
    assert state is None
    assert_close(y, it.whole(it.params, it.empty(), x, jnp.ones((BATCH, LENGTH), jnp.int32), dy, dstate).y, what=spec)


@every
def test_bfloat16_stays_inside_the_table(spec):
    """Computed in bfloat16 from float32 parameters, against float64; states stay float32."""
    it = subject(spec)
    x, dy, dstate = it.random(3)
    graphdef, _ = nnx.split(mixers.create(spec, WIDTH, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    mixer = nnx.merge(graphdef, it.params)
    y, _ = jax.jit(lambda x, state, ids: mixer(x, state=state, segment_ids=ids))(
        x.astype(jnp.bfloat16), mixer.init_state(BATCH, 2 * LENGTH), jnp.asarray(IDS)
    )
    assert y.dtype == jnp.bfloat16
    wanted = it.stepwise(it.empty(), x.astype(jnp.bfloat16).astype(jnp.float32), IDS, dy, dstate).y
    real = IDS != 0
    assert error(np.asarray(y, np.float64)[real], wanted[real]) < RELATIVE["bfloat16"], spec


@every
def test_flops_are_those_of_the_definition(spec):
    """Counted in the reference's jaxpr at t and 2t: what grows with t, plus the causal half of what grows with t^2."""
    name = mixers.registry.check(spec)
    if dict(name.settings).get("window"):
        pytest.skip("the reference scores every pair and masks; the count with a window has its own test")
    settings = {**dict(name.settings), "implementation": "reference"}
    mixer = mixers.create(name._replace(settings=tuple(settings.items())), WIDTH, rngs=nnx.Rngs(0))
    for length in (64, 128):
        once, twice = (
            dots(jax.make_jaxpr(lambda x: mixer(x)[0])(jnp.zeros((BATCH, n, WIDTH))).jaxpr) for n in (length, 2 * length)
        )
        square = max(0, (twice - 2 * once) / 2)
        wanted = once - square + square * (length + 1) / (2 * length)
        assert abs(mixer.flops(BATCH, length) / wanted - 1) < 0.02, f"{spec}: {mixer.flops(BATCH, length)} against {wanted}"


@every
def test_state_bytes_are_those_of_the_state(spec):
    it = subject(spec)
    mixer = nnx.merge(it.graphdef, it.params)
    measured = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(it.packed.state)) // BATCH
    assert mixers.state_bytes(mixer, 2 * LENGTH) == measured


@pytest.mark.slow
@every
def test_vmap_equals_a_loop(spec):
    it = subject(spec)
    stacked = jnp.stack([it.random(8)[0], it.random(9)[0]])
    mixer = nnx.merge(it.graphdef, it.params)
    run = lambda x: mixer(x, state=it.empty(), segment_ids=jnp.asarray(IDS))
    assert_close(jax.jit(jax.vmap(run))(stacked), jax.tree.map(lambda *a: jnp.stack(a), *map(run, stacked)), what=spec)


@pytest.mark.slow
@every
@pytest.mark.parametrize("cut", [1, 20, 40])
def test_pieces_of_their_true_lengths_give_the_whole(spec, cut):
    """Without padding and ids: the shapes that prefill and decoding use."""
    it = subject(spec)
    x, _, _ = it.random(10)
    mixer = nnx.merge(it.graphdef, it.params)
    run = jax.jit(lambda x, state: mixer(x, state=state))
    y, state = run(x, it.carried)
    first, middle = run(x[:, :cut], it.carried)
    rest, last = run(x[:, cut:], middle)
    assert_close((jnp.concatenate([first, rest], axis=1), last), (y, state), what=f"{spec} cut at {cut}")


def test_windowed_flops_count_the_pairs_that_are_seen():
    full, windowed = (mixers.create(spec, WIDTH, rngs=nnx.Rngs(0)) for spec in ("softmax", "softmax(window=5)"))
    pairs = sum(min(i + 1, 5) for i in range(LENGTH))
    all_pairs = LENGTH * (LENGTH + 1) // 2
    assert full.flops(1, LENGTH) - windowed.flops(1, LENGTH) == 4 * WIDTH * (all_pairs - pairs)
