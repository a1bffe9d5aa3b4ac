"""Delta rules against their papers' formulas, token by token in NumPy, and against each other where one contains the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.published import B, D, T, affine, built, low_rank, rms_norm, sigmoid, silu, split, wide
from helpers.tolerances import assert_close
from seqzoo import mixers
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_attention.delta_rule import delta_rule
from seqzoo.model import LanguageModel


def convolved(mixer, name, x):
    """silu of one of the three convolutions."""
    convolution = getattr(mixer, f"{name}_convolution")
    z, taps = affine(getattr(mixer, name), x), wide(convolution.w)
    padded = np.concatenate([np.zeros((B, len(taps) - 1, z.shape[-1])), z], axis=1)
    return silu(sum(taps[j] * padded[:, j : j + T] for j in range(len(taps))))


def unit(x, eps=1e-6):
    return x / np.sqrt((x**2).sum(-1, keepdims=True) + eps)


def projected(mixer, x):
    """q, k, v by head (and step), beta, and exp(g) [b, t, h, k or 1] of the gated ones."""
    heads = mixer.heads
    q, k, v = (convolved(mixer, name, x) for name in "qkv")
    return *(split(z, heads) for z in (q, k, v)), mixer.beta_max * sigmoid(affine(mixer.beta, x))


def step_decay(decay, z):
    """[b, t, h, k or 1]."""
    a = np.exp(wide(decay.a_log))
    return np.exp(-a[:, None] * split(np.logaddexp(0, z + wide(decay.bias)), len(a)))


def correct(q, k, v, beta, kept=None, taken=None):
    """o_t = S_t^T q_t / sqrt(k), S_t = kept_t S_{t-1} + beta_t k_t (v_t - what is found)^T: S~_t^T k_t, or S_{t-1}^T taken_t."""
    kept = np.ones((*k.shape[:3], 1)) if kept is None else kept
    s, read = np.zeros((B, *k.shape[2:], v.shape[-1])), []
    for t in range(k.shape[1]):
        found = None if taken is None else np.einsum("bhk,bhkv->bhv", taken[:, t], s)
        s = kept[:, t, :, :, None] * s
        found = np.einsum("bhk,bhkv->bhv", k[:, t], s) if found is None else found
        s = s + np.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], v[:, t] - found)
        read.append(np.einsum("bhk,bhkv->bhv", q[:, t], s) * k.shape[-1] ** -0.5)
    return np.stack(read, axis=1)


def finished(mixer, o, gate=1.0, eps=1e-5):
    return affine(mixer.out, gate * rms_norm(o, wide(mixer.norm.scale), eps).reshape(B, T, -1))


@pytest.mark.parametrize("settings", ["", "heads=2, expand_k=0.5, expand_v=2, conv_size=2, negative_eigenvalues=True"])
def test_deltanet_corrects_the_value_stored_under_a_key(settings):
    mixer, x, y = built(f"deltanet({settings})")
    q, k, v, beta = projected(mixer, x)
    assert_close(y, finished(mixer, correct(unit(q), unit(k), v, beta)))


@pytest.mark.parametrize("settings", ["", "heads=2, expand_k=0.5, expand_v=2, conv_size=2, negative_eigenvalues=True"])
def test_gated_deltanet_forgets_before_it_corrects(settings):
    mixer, x, y = built(f"gated_deltanet({settings})")
    q, k, v, beta = projected(mixer, x)
    o = correct(unit(q), unit(k), v, beta, step_decay(mixer.decay, affine(mixer.decay_in, x)))
    assert_close(y, finished(mixer, o, silu(affine(mixer.gate, x))))


@pytest.mark.parametrize(
    "settings", ["", "heads=2, expand_k=0.5, expand_v=2, gate_rank=3, gate_bias=True, negative_eigenvalues=True"]
)
def test_kda_forgets_by_channel(settings):
    mixer, x, y = built(f"kda({settings})")
    q, k, v, beta = projected(mixer, x)
    o = correct(unit(q), unit(k), v, beta, step_decay(mixer.decay, low_rank(mixer.decay_in, x)))
    assert_close(y, finished(mixer, o, sigmoid(low_rank(mixer.gate, x))))


@pytest.mark.parametrize("settings", ["", "heads=2, expand_k=0.5, expand_v=2, feedback=False, correction=0.02, output_gate='silu'"])
def test_comba_removes_a_fraction_of_the_value_before_the_decay(settings):
    mixer, x, y = built(f"comba({settings})")
    q, k, v, beta = projected(mixer, x)
    share = 1.0 if mixer.feedback_logit is None else sigmoid(wide(mixer.feedback_logit))[:, None]
    q = unit(q - wide(mixer.query_correction)[:, None] * k)
    o = correct(q, unit(k), v, beta, step_decay(mixer.decay, affine(mixer.decay_in, x)), share * unit(k))
    assert_close(y, finished(mixer, o, (silu if "silu" in settings else sigmoid)(affine(mixer.gate, x))))


@pytest.mark.parametrize("settings", ["", "heads=2, expand_k=0.5, expand_v=2, steps=3, negative_eigenvalues=False", "forget=False"])
def test_gated_deltaproduct_takes_several_steps_per_token(settings):
    mixer, x, y = built(f"gated_deltaproduct({settings})")
    heads, n = mixer.heads, mixer.steps
    q, k, v = (convolved(mixer, name, x) for name in "qkv")
    per_step = lambda z: z.reshape(B, T * n, heads, -1)
    beta = mixer.beta_max * sigmoid(per_step(affine(mixer.beta, x)))[..., 0]
    kept = np.ones((B, T, n, heads, 1))
    if mixer.forget:
        kept[:, :, 0] = step_decay(mixer.decay, affine(mixer.decay_in, x))
    late = np.repeat(unit(split(q, heads)), n, axis=1)  # read after each step, compared after the last
    o = correct(late, unit(per_step(k)), per_step(v), beta, kept.reshape(B, T * n, heads, 1))[:, n - 1 :: n]
    assert_close(y, finished(mixer, o, silu(affine(mixer.gate, x))))


def rwkv7(mixer, x, first=None):
    """(y, the values before they are blended with `first`)."""
    heads = mixer.heads
    back = np.concatenate([np.zeros((B, 1, D)), x[:, :-1]], axis=1) - x
    x_r, x_w, x_k, x_v, x_a, x_g = (x + back * mu for mu in wide(mixer.mix))
    r, k, own = affine(mixer.receptance, x_r), affine(mixer.key, x_k), affine(mixer.value, x_v)
    w = np.exp(-np.exp(-0.5) * sigmoid(low_rank(mixer.decay, x_w, np.tanh)))
    a = sigmoid(low_rank(mixer.rate, x_a))
    v = own if first is None else own + (first - own) * sigmoid(low_rank(mixer.first, x_v))
    u = unit(split(k * wide(mixer.removal), heads), mixer.key_eps)
    k = split(k * (1 + (a - 1) * wide(mixer.replacement)), heads)
    r, w, a, v = (split(z, heads) for z in (r, w, a, v))
    s, read = np.zeros((B, heads, k.shape[-1], v.shape[-1])), []
    for t in range(T):
        found = np.einsum("bhk,bhkv->bhv", u[:, t], s)
        s = w[:, t, :, :, None] * s - np.einsum("bhk,bhv->bhkv", a[:, t] * u[:, t], found)
        s = s + np.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        read.append(np.einsum("bhk,bhkv->bhv", r[:, t], s))
    o = np.stack(read, axis=1)
    o = (o - o.mean(-1, keepdims=True)) / np.sqrt(o.var(-1, keepdims=True) + mixer.norm.eps)
    o = o.reshape(B, T, -1) * wide(mixer.norm.scale) + wide(mixer.norm.bias)
    o = o + (np.einsum("bthk,hk,bthk->bth", r, wide(mixer.bonus), k)[..., None] * v).reshape(B, T, -1)
    return affine(mixer.out, low_rank(mixer.gate, x_g, sigmoid) * o), own


@pytest.mark.parametrize(
    "settings", ["", "heads=2, expand_k=0.5, expand_v=2, first_value=False, decay_rank=3, rate_rank=5, eps=1e-5, key_eps=1e-2"]
)
def test_rwkv7_removes_and_writes_with_separate_strengths(settings):
    mixer, x, y = built(f"rwkv7({settings})")
    assert_close(y, rwkv7(mixer, x)[0])


def test_rwkv7_blends_its_values_with_those_of_the_first_layer():
    mixer, x, alone = built("rwkv7")
    run = jax.jit(lambda mixer, x, layer_inputs: mixer.with_layer_inputs(x, layer_inputs)[::2])
    y, layer_inputs = run(mixer, x.astype(np.float32), mixer.init_layer_inputs(x.astype(np.float32)))
    own = rwkv7(mixer, x)[1]
    assert_close(y, alone)
    assert_close(layer_inputs[mixer.layer_input].value, own)
    earlier = np.random.default_rng(1).standard_normal(own.shape).astype(np.float32)
    layer_inputs = {mixer.layer_input: layer_inputs[mixer.layer_input]._replace(value=earlier)}
    y, after = run(mixer, x.astype(np.float32), layer_inputs)
    assert_close(y, rwkv7(mixer, x, earlier)[0])
    np.testing.assert_array_equal(after[mixer.layer_input].value, earlier)


@pytest.mark.parametrize("stack", ["scan", "loop"])
@pytest.mark.parametrize("layers", [("rwkv7",), ("softmax", "rwkv7")])
def test_the_first_values_flow_through_the_backbone(layers, stack):
    """A change of the first RWKV-7 layer's W_v that only layer inputs can carry reaches the last layer."""
    depth, settings = 2 * len(layers), {"layers": layers, "channel": "none", "stack": stack, "rngs": nnx.Rngs(0)}
    model = LanguageModel(13, D, depth=depth, **settings)
    noise = np.random.default_rng(0)
    model = jax.tree.map(lambda p: p + 0.1 * noise.standard_normal(p.shape).astype(np.float32), model)
    tokens = np.arange(2 * T).reshape(2, T) % 13
    mixer = getattr(model.stack.scanned, f"{len(layers) - 1}_rwkv7").mixer
    mixer.out.w[...] = mixer.out.w[...].at[0].set(0)  # the first layer adds nothing to the residual stream
    run = jax.jit(lambda model: model(tokens)[0])
    before = run(model)
    mixer.value.w[...] = mixer.value.w[...].at[0].multiply(2)
    assert np.abs(run(model) - before).max() > 1e-3


def test_rwkv7_without_forgetting_and_with_one_strength_is_deltanet():
    """w = 1, keys of unit length, a = beta, k~ = beta k: at the op that both are calls of."""
    noise = np.random.default_rng(0)
    q, k, v = (noise.standard_normal((B, T, 2, 8)).astype(np.float32) for _ in range(3))
    k, beta = unit(k).astype(np.float32), noise.uniform(0, 2, (B, T, 2)).astype(np.float32)
    b = beta[..., None] * k
    free = linear_attention(q, b, v, log_decay=jnp.zeros((B, T, 2, 8)), a=-k, b=b)
    for got, wanted in zip(free, delta_rule(q, k, v, beta), strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("forget", [False, True])
def test_the_delta_rule_is_gradient_descent_on_the_value_under_a_key(forget):
    """Token by token on |S^T k - v|^2 / 2: a linear memory of TTT without a norm; with weight decay, of Titans without momentum."""
    noise = np.random.default_rng(0)
    q, k, v = (noise.standard_normal((1, T, 1, 8)).astype(np.float32) for _ in range(3))
    k, beta = unit(k).astype(np.float32), noise.uniform(0, 1, (1, T, 1)).astype(np.float32)
    kept = noise.uniform(0.5, 1, (1, T, 1)).astype(np.float32) if forget else np.ones_like(beta)
    wrong = lambda s, k, v: jnp.sum((k @ s - v) ** 2) / 2
    s = jnp.zeros((8, 8))
    for t in range(T):
        s = kept[0, t, 0] * s - beta[0, t, 0] * jax.grad(wrong)(s, k[0, t, 0], v[0, t, 0])
    settings = {"log_decay": np.log(kept), "undecayed": k} if forget else {}
    assert_close(delta_rule(q, k, v, beta, **settings)[1][0, 0], s)


def reduced(larger, smaller, change):
    """The outputs of two mixers, all parameters that the smaller has taken from it, the others changed."""
    small, x, wanted = built(smaller)
    large = mixers.create(larger, D, rngs=nnx.Rngs(1))
    theirs, ours = (dict(nnx.to_flat_state(nnx.state(m, nnx.Param))) for m in (small, large))
    for path, leaf in ours.items():
        if path in theirs:
            leaf[...] = theirs[path][...]
    change(large)
    return large(x.astype(np.float32))[0], wanted


def forget_nothing(mixer):
    mixer.decay.a_log[...] = jnp.full_like(mixer.decay.a_log[...], -jnp.inf)


def test_gated_deltanet_that_forgets_nothing_is_deltanet_but_for_the_gate():
    def change(mixer):
        forget_nothing(mixer)
        mixer.gated = lambda x, y: y

    got, wanted = reduced("gated_deltanet(expand_k=1.0, expand_v=1.0)", "deltanet", change)
    assert_close(got, wanted)


def test_gated_deltaproduct_of_one_step_is_gated_deltanet():
    got, wanted = reduced("gated_deltaproduct(steps=1, negative_eigenvalues=False)", "gated_deltanet", lambda mixer: None)
    assert_close(got, wanted)


def test_comba_without_a_decay_or_corrections_is_gated_deltanet():
    small, x, _ = built("gated_deltanet")
    forget_nothing(small)
    large = mixers.create("comba(feedback=False, correction=0.0, output_gate='silu')", D, rngs=nnx.Rngs(1))
    for path, leaf in nnx.to_flat_state(nnx.state(small, nnx.Param)):
        dict(nnx.to_flat_state(nnx.state(large, nnx.Param)))[path][...] = leaf[...]
    assert_close(large(x.astype(np.float32))[0], small(x.astype(np.float32))[0])


@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet", "kda", "comba", "gated_deltaproduct"])
def test_without_beta_nothing_is_written(name):
    mixer, x, _ = built(name)
    mixer.beta_max = 0.0
    _, state = mixer(x.astype(np.float32), state=mixer.init_state(B))
    assert not np.any(state.matrix)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("deltanet(heads=3)", "heads=3 does not divide key width 32"),
        ("gated_deltanet(conv_size=0)", "conv_size=0, wanted int in"),
        ("comba(output_gate='swish')", "output_gate='swish', wanted 'sigmoid' or 'silu'"),
        ("gated_deltaproduct(steps=0)", "steps=0, wanted int in"),
        ("rwkv7(heads=5)", "heads=5 does not divide key width 32"),
    ],
)
def test_settings_that_do_not_fit_are_refused(spec, says):
    with pytest.raises(ValueError, match=says):
        mixers.create(spec, D, rngs=nnx.Rngs(0))
