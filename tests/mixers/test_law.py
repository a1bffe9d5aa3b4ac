"""The law of every mixer, by seqzoo.testing. Registering a mixer enrols it here; nothing else does, and there are no exemptions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seqzoo import channels, mixers, testing
from seqzoo.kernels.common import explain, sharding
from seqzoo.testing import RELATIVE, MixerUnderTest, assert_close
from seqzoo.testing.mixer_under_test import LENGTH, REAL, SEGMENT_IDS

# Settings that change what a state holds or which terms there are.
VARIANTS = (
    "softmax(window=6, kv_heads=2, qk_norm='rms')",
    "softmax(rope_theta=None, bias=True)",
    "softmax(kv_heads=2, qk_norm='rms', joint_qk_norm=True, output_gate=True)",
    "softmax(kv_heads=1, value_heads=2, value_dim=6, scale=0.5)",
    "gated_deltanet(heads=4, key_heads=2, expand_k=0.5, expand_v=1.5)",
    "kda(heads=2, gate_rank=3, gate_bias=True)",
    "sigmoid(length=64, window=50, qk_norm=None)",
    "linear(normalised=False)",
    "gla(heads=2, expand_k=1, expand_v=2)",
    "mamba(conv_size=1, state=3)",
    "mamba2(groups=2, head_dim=16, state=8, norm_before_gate=True)",
    "mamba2(head_dim=16, state=8, dt_limit=(0.01, 0.05))",
    "aaren(heads=1)",
    "based(heads=1, feature_dim=8)",
    "base_conv(conv_size=1)",
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
    "s5(blocks=1, glu='half2', discretization='bilinear')",
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


def enrolled(default, variants=pytest.mark.slow):
    """Every mixer and variant: mixers in `default` in the default suite, other mixers in the slow tier, variants as marked."""
    marks = lambda spec: () if spec in default else variants if spec in VARIANTS else pytest.mark.slow
    specs = [pytest.param(spec, marks=marks(spec)) for spec in (*mixers.names(), *VARIANTS)]
    # A mixer's tests follow one another (that is what the scope is for): they share what it compiles.
    return pytest.mark.parametrize("spec", specs, scope="module")


every = enrolled(mixers.names())
# By default: attention over a ring, an elementwise recurrence, and a matrix-valued one whose first values reach later layers.
sharded = enrolled({"softmax", "rwkv7"}, pytest.mark.exhaustive)
every_mixer_slowly = enrolled((), pytest.mark.exhaustive)


@functools.lru_cache(maxsize=1)
def under_test(spec) -> MixerUnderTest:
    """The mixer of a spec; only the last is held, since a process may not hold many compiled programs."""
    return MixerUnderTest(spec)


# Weights exp(x) without a cap, at inputs times 1000: one weight is nearly all, and its gradient a difference of two float32 sums.
UNCAPPED = {spec: 2e-3 for spec in VARIANTS if spec == "aaren(heads=1)" or "gate_cap=None" in spec}


@every
@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_every_mixer_keeps_the_law(spec, check):
    if check is testing.checks.check_scales and spec in UNCAPPED:
        check = functools.partial(check, tolerance=UNCAPPED[spec])
    check(under_test(spec))


@pytest.mark.parametrize("spec", ["softmax(dropout=0.3)", "softmax(dropout=0.3, window=6)", "sigmoid(dropout=0.3)"])
def test_with_one_key_the_pieces_of_a_row_draw_what_the_whole_draws(spec):
    testing.checks.check_key(under_test(spec))


PRODUCTS = ("based", "mamba2")  # they give the op products of two projections, which are infinite at 1e20


@pytest.mark.parametrize("spec", [name for name in mixers.names() if name not in PRODUCTS], scope="module")
def test_a_document_whose_state_overflows_leaves_the_next_one_as_it_is(spec):
    testing.checks.check_overflow(under_test(spec), size=1e20)


def test_a_document_that_grows_to_infinity_leaves_the_next_one_as_it_is():
    """s5 without `stable`, its eigenvalues at exp(7): 20 tokens overflow, the 5 of the next document do not."""
    it = MixerUnderTest("s5(stable=False)")
    it.params["real"][...] = 7 / jnp.exp(it.params["log_dt"][...])
    x, dy, dstate = it.inputs(3)
    last = (SEGMENT_IDS == 4)[..., None]
    run = lambda x: it(it.empty_state(), x, SEGMENT_IDS, dy * last, [np.zeros_like(leaf) for leaf in dstate])
    (found, wanted) = (run(x) for x in (x, np.where(last, x, 0)))
    assert not np.all(np.isfinite(found.y)) and np.all(np.isfinite(wanted.y))
    assert_close((found.y[last[..., 0]], found.x[last[..., 0]]), (wanted.y[last[..., 0]], wanted.x[last[..., 0]]), what=str(it))


MESH = jax.make_mesh((1, 2, 2, 2), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)


@sharded
def test_sharded_over_rows_time_and_heads_it_gives_what_it_gives_on_one_device(spec):
    """Values, final state and all gradients over packed documents, after a state, on 2 x 2 x 2 devices."""
    it = under_test(spec)
    # Optimised as for users: otherwise LLVM adds one number after the other, and the gradient of Mamba-2's skip is a single sum of
    # 5,632 that nearly cancel.
    run = jax.jit(functools.partial(it.with_gradients, it.forward), compiler_options={"xla_backend_optimization_level": 3})
    x, dy, dstate = it.inputs(3)
    tokens = jax.NamedSharding(MESH, jax.P(sharding.BATCH, sharding.TIME))
    x, ids, dy = (jax.device_put(a, tokens) for a in (x, SEGMENT_IDS, dy))
    with jax.set_mesh(MESH):
        found = run(it.params, it.state, x, ids, dy, dstate)
        lines = explain(it.forward, it.params, it.state, x, ids)
    # Two runs in float32, each within the tolerance of the definition, so within twice that of each other.
    assert_close(
        found._replace(y=found.y * REAL), it.packed._replace(y=it.packed.y * REAL), tolerance=2 * RELATIVE["float32"], what=str(it)
    )
    over_time = [line for line in lines if "time" in line]
    assert over_time and all("time over seq=2" in line for line in over_time), lines


@every_mixer_slowly
def test_vmap_equals_a_loop(spec):
    it = under_test(spec)
    x = np.stack([it.inputs(8)[0], it.inputs(9)[0]])
    run = jax.jit(lambda params, x: it.forward(params, it.empty_state(), x, SEGMENT_IDS))
    stacked = jax.jit(jax.vmap(run, in_axes=(None, 0)))(it.params, x)
    assert_close(stacked, jax.tree.map(lambda *a: np.stack(a), *(run(it.params, row) for row in x)), what=str(it))


@every_mixer_slowly
def test_pieces_of_their_true_lengths_give_the_whole(spec):
    """Without padding and ids: the shapes that prefill and decoding use."""
    it = under_test(spec)
    x, _, _ = it.inputs(10)
    run = jax.jit(lambda params, state, x: nnx.merge(it.graphdef, params)(x, state=state))
    whole = run(it.params, it.state, x)
    for cut in (1, 20, 40):
        first, middle = run(it.params, it.state, x[:, :cut])
        rest, last = run(it.params, middle, x[:, cut:])
        assert_close((np.concatenate([first, rest], axis=1), last), whole, what=f"{it}, cut at {cut}")


@pytest.mark.parametrize("registry", [mixers.registry, channels.registry], ids=["mixers", "channel mixers"])
def test_an_empty_piece_and_another_width_are_refused_in_one_line(registry):
    def refuse(name):
        layer = registry.create(name, 32, rngs=nnx.Rngs(0))
        for shape in ((2, 0, 32), (0, 3, 32), (2, 3, 31), (2, 32)):
            with pytest.raises(ValueError, match=r"^[^\n]*wanted (at least one of each|\[b, t, 32\])[^\n]*$"):
                layer(jnp.zeros(shape))

    for name in set(registry.names()) - {"none"}:
        jax.eval_shape(functools.partial(refuse, name))


def test_windowed_flops_count_the_pairs_that_are_seen():
    width, window = 32, 5
    full, windowed = (mixers.create(spec, width, rngs=nnx.Rngs(0)) for spec in ("softmax", f"softmax(window={window})"))
    pairs, all_pairs = sum(min(i + 1, window) for i in range(LENGTH)), LENGTH * (LENGTH + 1) // 2
    assert full.flops(1, LENGTH) - windowed.flops(1, LENGTH) == 4 * width * (all_pairs - pairs)
