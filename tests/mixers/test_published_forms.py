"""Mixers against the formulas of their papers, written out in NumPy; the law only compares a mixer with itself."""

import jax
import numpy as np
import pytest
from flax import nnx

from helpers.published import B, D, T, affine, built, matrix_state, rms_norm, sigmoid, silu, split, wide
from helpers.tolerances import assert_close
from seqzoo import mixers
from seqzoo.model import LanguageModel


@pytest.mark.parametrize(("heads", "f"), [(1, 8), (4, 16)])
def test_based_is_attention_with_the_exponential_cut_after_the_square(heads, f):
    """o_t = sum_{i <= t} w_ti v_i / sum_{i <= t} w_ti with w = 1 + s + s^2 / 2, s = q^T k / sqrt(f): no features."""
    mixer, x, y = built(f"based(heads={heads}, feature_dim={f})")
    q, k, v = ((x @ wide(p.w)).reshape(B, T, heads, -1) for p in (mixer.q, mixer.k, mixer.v))
    s = np.einsum("bthf,bshf->bhts", q, k) / np.sqrt(f)
    weights = np.tril(1 + s + s**2 / 2)
    o = np.einsum("bhts,bshv->bthv", weights / weights.sum(-1, keepdims=True), v)
    assert_close(y, o.reshape(B, T, D) @ wide(mixer.out.w))


@pytest.mark.parametrize("width", [1, 3])
def test_base_conv_is_a_convolution_times_a_projection_and_the_input(width):
    mixer, x, y = built(f"base_conv(conv_size={width})")
    padded = np.concatenate([np.zeros((B, width - 1, D)), x], axis=1)
    kernel = wide(mixer.convolution.w)  # the last one is the present token's
    convolved = sum(kernel[j] * padded[:, j : j + T] for j in range(width)) + wide(mixer.convolution.b)
    assert_close(y, convolved * (x @ wide(mixer.gate.w) + wide(mixer.gate.b)) + x)


@pytest.mark.parametrize("settings", ["", "heads=2, expand_v=1, rope_theta=None", "heads=2, rope_theta=100.0"])
def test_retnet_scores_rotate_and_decay_with_the_distance(settings):
    """o_t = sum_{s <= t} gamma^(t - s) Re[q_t conj(k_s) e^(i theta (t - s))] v_s; channels j and j + k/2 are one complex number."""
    mixer, x, y = built(f"retnet({settings})")
    heads, base = mixer.heads, mixer.rope_theta
    q, k, v = (split(affine(p, x), heads) for p in (mixer.q, mixer.k, mixer.v))
    half = q.shape[-1] // 2
    paired = lambda z: z[..., :half] + 1j * z[..., half:]
    theta = np.zeros(half) if base is None else base ** (-np.arange(half) / half)
    turn = np.exp(1j * np.arange(T)[:, None] * theta)[:, None, :]
    s = np.einsum("bthk,bshk->bhts", paired(q) * turn, (paired(k) * turn).conj()).real / np.sqrt(2 * half)
    gamma = 1 - 2.0 ** (-5 - np.arange(heads))
    distance = np.maximum(np.subtract.outer(np.arange(T), np.arange(T)), 0)
    o = np.einsum("bhts,bshv->bthv", np.tril(s * gamma[:, None, None] ** distance), v)
    o = rms_norm(o, wide(mixer.norm.scale), 1e-6).reshape(B, T, -1)
    assert_close(y, affine(mixer.out, silu(affine(mixer.gate, x)) * o))


def test_retnet_reads_positions_that_are_given():
    """A gap of 100 positions turns what lies before it, so the outputs after it change, and those before do not."""
    mixer, x, y = built("retnet")
    gap = np.broadcast_to(np.arange(T) + 100 * (np.arange(T) >= T // 2), (B, T)).astype(np.int32)
    other = np.asarray(mixer(x.astype(np.float32), positions=gap)[0])
    assert_close(other[:, : T // 2], y[:, : T // 2])
    assert np.abs(other - y)[:, T // 2 :].max() > 1e-3


def test_retnet_counts_inside_each_document():
    """Scores depend on distances alone, so outputs do not show it; keys in the state, and the counter, do."""
    mixer = mixers.create("retnet", D, rngs=nnx.Rngs(0))
    x = np.random.default_rng(1).standard_normal((1, 9, D)).astype(np.float32)
    ids, inside = np.array([[1, 1, 1, 0, 2, 2, 0, 2, 2]], np.int32), np.array([[0, 1, 2, 0, 0, 1, 0, 2, 3]], np.int32)
    _, counted = mixer(x, state=mixer.init_state(1), segment_ids=ids)
    _, given = mixer(x, state=mixer.init_state(1), segment_ids=ids, positions=inside)
    assert_close(counted.matrix, given.matrix)
    assert counted.position.tolist() == [4]


@pytest.mark.parametrize(("settings", "depth"), [("", None), ("heads=2, head_dim=8", None), ("", (0, 3)), ("", (2, 3))])
def test_lightning_forgets_at_a_rate_of_head_and_layer(settings, depth):
    mixer, x, y = built(f"lightning({settings})")
    heads, (index, count) = mixer.heads, depth or (0, 1)
    if depth:
        layer = mixers.create("lightning", D, depth=depth, rngs=nnx.Rngs(0))  # slopes are a parameter here, but not to be perturbed
        layer.q, layer.k, layer.v, layer.gate, layer.norm, layer.out = mixer.q, mixer.k, mixer.v, mixer.gate, mixer.norm, mixer.out
        y = jax.jit(lambda layer, x: layer(x)[0])(layer, x.astype(np.float32))
    slope = 1 / 2 ** (8 / heads * (np.arange(heads) + 1)) * (1 - index / (count - 1 + 1e-5) + 1e-5)
    q, k, v = (split(silu(affine(p, x)), heads) for p in (mixer.q, mixer.k, mixer.v))
    o = matrix_state(q, k, v, np.broadcast_to(np.exp(-slope)[:, None], (B, T, heads, 1)))
    o = rms_norm(o.reshape(B, T, -1), wide(mixer.norm.scale), 1e-6)
    assert_close(y, affine(mixer.out, sigmoid(affine(mixer.gate, x)) * o))


@pytest.mark.parametrize("settings", ["", "heads=2, expand_k=0.5, expand_v=2, conv_size=None, gate_temperature=2.0"])
def test_simple_gla_forgets_by_head_after_convolutions(settings):
    mixer, x, y = built(f"simple_gla({settings})")
    heads, width = mixer.heads, mixer.conv_size

    def features(projection, convolution):
        z = affine(projection, x)
        if convolution is None:
            return split(z, heads)
        padded = np.concatenate([np.zeros((B, width - 1, z.shape[-1])), z], axis=1)
        return split(silu(sum(wide(convolution.w)[j] * padded[:, j : j + T] for j in range(width))), heads)

    q = features(mixer.q, mixer.q_convolution)
    k, v = features(mixer.k, mixer.k_convolution), features(mixer.v, mixer.v_convolution)
    decay = sigmoid(affine(mixer.forget, x)) ** (1 / mixer.gate_temperature)
    o = rms_norm(matrix_state(q, k, v, decay[..., None]) * q.shape[-1] ** -0.5, wide(mixer.norm.scale), 1e-5)
    assert_close(y, affine(mixer.out, silu(affine(mixer.gate, x)) * o.reshape(B, T, -1)))


@pytest.mark.parametrize("settings", ["", "heads=2", "lower_bound=0", "lower_bound=0.75"])
def test_hgrn2_writes_one_minus_its_forget_gate(settings):
    mixer, x, y = built(f"hgrn2({settings})")
    heads = mixer.heads
    bound = mixer.bounded.lower_bound if mixer.bounded.logit is None else sigmoid(wide(mixer.bounded.logit))
    f = split(bound + (1 - bound) * sigmoid(affine(mixer.forget, x)), heads)
    o = matrix_state(split(silu(affine(mixer.q, x)), heads), 1 - f, split(affine(mixer.v, x), heads), f)
    o = rms_norm((o * mixer.head_dim**-0.5).reshape(B, T, -1), wide(mixer.norm.scale), 1e-5)
    assert_close(y, affine(mixer.out, o))


def test_hgrn2_bounds_start_at_the_fraction_of_layers_below():
    for index in range(4):
        mixer = mixers.create("hgrn2", D, depth=(index, 4), rngs=nnx.Rngs(0))
        assert_close(sigmoid(wide(mixer.bounded.logit)), np.full(D, max(index / 4, 0.01)))


@pytest.mark.parametrize("stack", ["scan", "loop"])
def test_lightning_layers_of_a_stack_have_their_own_slopes_and_training_leaves_them(stack):
    """Also in layers that share one compiled body, where the index of the layer is traced."""
    model = LanguageModel(11, D, layers=("lightning(heads=2)",), depth=3, stack=stack, rngs=nnx.Rngs(0))
    slopes = wide(getattr(model.stack.scanned, "0_lightning").mixer.slopes)
    wanted = np.outer([1 + 1e-5, 1 - 1 / (2 + 1e-5) + 1e-5, 1 - 2 / (2 + 1e-5) + 1e-5], [2.0**-4, 2.0**-8])
    assert np.allclose(slopes, wanted, rtol=1e-4, atol=1e-7)
    gradient = jax.jit(jax.grad(lambda model: (model(np.arange(8, dtype=np.int32)[None])[0] ** 2).sum()))(model)
    mixer = getattr(gradient.stack.scanned, "0_lightning").mixer
    assert not np.any(mixer.slopes[...]) and np.any(mixer.q.w[...])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("based(heads=3)", "heads=3 does not divide d_model=32"),
        ("based(feature_dim=0)", r"based: feature_dim=0, wanted int in \[1, 1024\]"),
        ("base_conv(conv_size=0)", "base_conv: conv_size=0, wanted int in"),
        ("retnet(heads=3)", "heads=3 does not divide key width 32 and value width 64"),
        ("retnet(heads=32)", "even key width, found 1"),
        ("lightning(heads=5)", "heads=5 does not divide d_model=32"),
        ("lightning(head_dim=0)", r"lightning: head_dim=0, wanted int in \[1, 65536\] or None"),
        ("simple_gla(conv_size=0)", r"simple_gla: conv_size=0, wanted int in \[1, 65536\] or None"),
        ("simple_gla(gate_temperature=0)", "simple_gla: gate_temperature=0, wanted number > 0"),
        ("hgrn2(heads=3)", "heads=3 does not divide d_model=32"),
        ("hgrn2(lower_bound=1)", r"hgrn2: lower_bound=1, wanted number in \[0, 1\) or None"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(spec, says):
    with pytest.raises(ValueError, match=says):
        mixers.create(spec, D, rngs=nnx.Rngs(0))
