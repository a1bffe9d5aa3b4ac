"""Mixers that weigh and normalise what they store, against the formulas of their papers: sums over all pairs, in NumPy, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.published import B, D, T, affine, built, sigmoid, split, wide
from helpers.tolerances import assert_close
from seqzoo import mixers
from seqzoo.model import LanguageModel

EPS = 1e-6


def run(mixer, x):
    return jax.jit(lambda mixer, x: mixer(x)[0])(mixer, x.astype(np.float32))


def causal(x):
    """x [b, h, t, s] with -inf where s > t."""
    return np.where(np.tril(np.ones((T, T), bool)), x, -np.inf)


def layer_norm(x, scale):
    """Over the last axis; scale is that of all heads, one after the other."""
    x = x - x.mean(-1, keepdims=True)
    return (x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)).reshape(B, T, -1) * scale


def preactivation(gate, x):
    z = affine(gate.projection, x) + wide(gate.bias)
    return z if gate.cap is None else gate.cap * np.tanh(z / gate.cap)


def mlstm(mixer, x, start=-np.inf):
    """Beck et al. 2024, the parallel form: weights D = exp(sum of log f + i~) of all pairs, over their row's maximum m.

    `start` is m before the first token; anything above -inf is a state of zeros that counts towards the maximum.
    """
    heads = mixer.heads
    q, k, v = (split(affine(p, x), heads) for p in (mixer.q, mixer.k, mixer.v))
    i, log_f = preactivation(mixer.input, x), -np.logaddexp(0, -preactivation(mixer.forget, x))
    log_i = i if mixer.exponential else -np.logaddexp(0, -i)
    total = np.cumsum(log_f, axis=1).transpose(0, 2, 1)  # [b, h, t]
    pairs = causal(total[..., :, None] - total[..., None, :] + log_i.transpose(0, 2, 1)[..., None, :])
    m = np.maximum(pairs.max(-1), start + total)[..., None] if mixer.exponential else 0.0
    scores = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1]) * np.exp(pairs - m)
    h = np.einsum("bhts,bshv->bhtv", scores, v)
    if mixer.normalised:
        with np.errstate(over="ignore"):
            h = h / (np.maximum(np.abs(scores.sum(-1, keepdims=True)), np.exp(-m)) + EPS)
    h = layer_norm(h.transpose(0, 2, 1, 3), wide(mixer.norm.scale))
    return affine(mixer.out, sigmoid(affine(mixer.gate, x)) * h)


MLSTMS = [
    "",
    "heads=2, expand_k=1, expand_v=2, input_bias=0.0, gate_cap=None",
    "input_bias=3.0, gate_cap=2.0",
    "input_gate='sigmoid', input_bias=0.0",
    "input_gate='sigmoid', input_bias=2.0, normalised=False",
]


@pytest.mark.parametrize("settings", MLSTMS)
def test_mlstm_is_its_parallel_form(settings):
    mixer, x, y = built(f"mlstm({settings})")
    assert_close(y, mlstm(mixer, x))


def test_mlstm_divides_by_the_normaliser_only_above_one():
    """Both sides of max(|n^T q|, exp(-m)) are taken in the rows of the tests above: taking either out changes the output."""
    mixer, x, _ = built("mlstm(heads=2, input_bias=0.0, gate_cap=None)")
    q, k = (split(affine(p, x), 2) for p in (mixer.q, mixer.k))
    i, f = preactivation(mixer.input, x), preactivation(mixer.forget, x)
    read, n = [], np.zeros((B, 2, q.shape[-1]))
    for t in range(T):
        n = sigmoid(f[:, t])[..., None] * n + np.exp(i[:, t])[..., None] * k[:, t]
        read.append(np.abs(np.einsum("bhk,bhk->bh", n, q[:, t])) / np.sqrt(q.shape[-1]))
    assert 0.1 < np.mean(np.array(read) > 1) < 0.9


@pytest.mark.parametrize("settings", MLSTMS[:3])
def test_mlstm_from_an_empty_state_is_the_released_code_from_a_maximum_of_zero(settings):
    """The first m shows only in the 1e-6 that is added to the denominator."""
    mixer, x, y = built(f"mlstm({settings})")
    assert_close(y, mlstm(mixer, x, start=0.0))


def pushed(mixer, gates):
    """(the mixer, x) such that the preactivation of each parameter in `gates` is +-100 exactly, as x's first channel has it."""
    x = np.random.default_rng(3).standard_normal((B, T, D)).astype(np.float32)
    x[..., 0] = np.sign(x[..., 0])
    for projection in gates:
        projection.w[...] = jnp.zeros_like(projection.w[...]).at[0].set(100.0)
    return mixer, x.astype(np.float64)


def assert_finite_gradients(mixer, x):
    loss = lambda mixer, x: jnp.sum(mixer(x)[0] ** 2)
    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(mixer, x.astype(np.float32))):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("gates", [("input",), ("forget",), ("input", "forget")])
def test_mlstm_gates_of_a_hundred_keep_it_in_range(gates):
    mixer, x, _ = built("mlstm(heads=2, input_bias=0.0, gate_cap=None)")
    mixer, x = pushed(mixer, [getattr(mixer, name).projection for name in gates])
    assert_close(run(mixer, x), mlstm(mixer, x))
    assert_finite_gradients(mixer, x)


def test_mlstm_starts_as_the_released_block_does():
    d, heads = 512, 4
    mixer = mixers.create("mlstm", d, depth=(1, 6), rngs=nnx.Rngs(0))
    for projection in (mixer.input.projection, mixer.forget.projection, mixer.gate):
        assert not np.any(projection.w[...])
    assert_close(wide(mixer.input.bias), np.full(heads, -10.0))
    assert_close(wide(mixer.forget.bias), np.array([3.0, 4.0, 5.0, 6.0]))
    for projection in (mixer.q, mixer.k, mixer.v):
        assert_close(wide(projection.w).std(), np.sqrt(2 / (5 * d)), tolerance=0.02)
    assert_close(wide(mixer.out.w).std(), 2 / 6 / np.sqrt(d), tolerance=0.02)


def rwkv4(mixer, x):
    """Peng et al. 2023: naive exponentials of all pairs. float64 holds those of keys up to 700."""
    previous = np.concatenate([np.zeros((B, 1, D)), x[:, :-1]], axis=1)
    r, k, v = (
        affine(p, wide(mu) * x + (1 - wide(mu)) * previous)
        for p, mu in (
            (mixer.receptance, mixer.mix_receptance),
            (mixer.key, mixer.mix_key),
            (mixer.value, mixer.mix_value),
        )
    )
    w, u = np.exp(wide(mixer.time_decay)), wide(mixer.time_first)
    distance = np.subtract.outer(np.arange(T), np.arange(T))[None, :, :, None]
    fade = np.where(distance > 0, -w * (distance - 1), np.where(distance == 0, u, -np.inf))
    weights = np.exp(fade + k[:, None])  # [b, t, s, d]
    wkv = (weights * v[:, None]).sum(2) / weights.sum(2)
    return affine(mixer.out, sigmoid(r) * wkv)


def test_rwkv4_is_an_average_by_exponentials_of_keys():
    mixer, x, y = built("rwkv4")
    assert_close(y, rwkv4(mixer, x))


def test_rwkv4_keys_of_a_hundred_keep_it_in_range():
    mixer, _, _ = built("rwkv4")
    mixer, x = pushed(mixer, [mixer.key])
    mixer.mix_key[...] = jnp.ones_like(mixer.mix_key[...])
    assert_close(run(mixer, x), rwkv4(mixer, x))
    assert_finite_gradients(mixer, x)


@pytest.mark.parametrize("stack", ["scan", "loop"])
def test_rwkv4_and_its_channel_mixer_start_by_layer_and_channel(stack):
    """As RWKV-v4neo's code has it, also where the index of the layer is traced."""
    count = 3
    model = LanguageModel(11, D, layers=("rwkv4",), channel="rwkv", depth=count, stack=stack, rngs=nnx.Rngs(0))
    block = getattr(model.stack.scanned, "0_rwkv4")
    for layer in range(count):
        rise, fall = layer / (count - 1), 1 - layer / count
        mix = np.array([i / D for i in range(D)]) ** fall
        wanted = {
            "time_decay": [-5 + 8 * (h / (D - 1)) ** (0.7 + 1.3 * rise) for h in range(D)],
            "time_first": [np.log(0.3) + 0.5 * ((h + 1) % 3 - 1) for h in range(D)],
            "mix_key": mix,
            "mix_value": mix + 0.3 * rise,
            "mix_receptance": np.sqrt(mix),
        }
        for name, values in wanted.items():
            assert_close(wide(getattr(block.mixer, name))[layer], np.array(values), what=f"{name} of layer {layer}")
        for name in ("mix_key", "mix_receptance"):
            assert_close(wide(getattr(block.channel, name))[layer], mix, what=f"the channel mixer's {name} of layer {layer}")
        value, key = wide(block.mixer.value.w)[layer], wide(block.channel.key.w)[layer]
        assert_close(value @ value.T, np.eye(D))
        assert_close(key @ key.T, 4 * np.eye(D))
    for projection in (block.mixer.key, block.mixer.receptance, block.mixer.out, block.channel.value, block.channel.receptance):
        assert not np.any(projection.w[...])


@pytest.mark.parametrize("settings", ["", "heads=2"])
def test_flow_conserves_incoming_and_outgoing_flow(settings):
    """Wu et al. 2022: one token after the other, every sum of the formula over the tokens so far."""
    mixer, x, y = built(f"flow({settings})")
    heads = mixer.heads
    q, k, v = (split(affine(p, x), heads).transpose(0, 2, 1, 3) for p in (mixer.q, mixer.k, mixer.v))
    q, k = sigmoid(q), sigmoid(k)
    flow = lambda a, b: ((a + EPS) * (b + EPS)).sum(-1)
    incoming, outgoing, source, competition, o = ([] for _ in range(5))
    over = lambda flows: np.stack(flows, axis=-1)[..., None]
    for t in range(T):
        past = slice(0, t + 1)
        incoming.append(flow(q[:, :, t], k[:, :, past].sum(2)) / (t + 1))
        outgoing.append(flow(k[:, :, t], q[:, :, past].sum(2)) / (t + 1))
        conserved_sink = flow(q[:, :, t], (k[:, :, past] / over(outgoing)).sum(2)) / (t + 1)
        conserved_source = flow(k[:, :, t], (q[:, :, past] / over(incoming)).sum(2)) / (t + 1)
        source.append(np.exp(np.clip(conserved_source, -1, 1)))
        competition.append((t + 1) * source[-1] / np.sum(source, axis=0))
        scores = np.einsum("bhk,bhsk->bhs", q[:, :, t] / incoming[-1][..., None], k[:, :, past]) / (t + 1)
        values = over(competition) * v[:, :, past]
        o.append(sigmoid(conserved_sink)[..., None] * np.einsum("bhs,bhsv->bhv", scores, values))
    assert_close(y, affine(mixer.out, np.stack(o, axis=1).reshape(B, T, -1)))


def test_flow_counts_the_tokens_of_each_document():
    mixer = mixers.create("flow", D, rngs=nnx.Rngs(0))
    x = np.random.default_rng(1).standard_normal((1, 9, D)).astype(np.float32)
    ids = np.array([[1, 1, 1, 0, 2, 2, 0, 2, 2]], np.int32)
    packed, state = mixer(x, state=mixer.init_state(1), segment_ids=ids)
    alone, _ = mixer(x[:, ids[0] == 2])
    assert_close(packed[:, ids[0] == 2], alone)
    assert state.position.tolist() == [4]


ETA = {"exp": np.exp, "softplus": lambda n: np.logaddexp(0, n), "sigmoid": sigmoid}


@pytest.mark.parametrize(("settings", "eta"), [("", "exp"), ("heads=1, expand_k=2, normaliser='softplus'", "softplus"),
                                               ("normaliser='sigmoid'", "sigmoid")])  # fmt: skip
def test_norm_attention_is_divided_by_a_function_of_the_reading_token(settings, eta):
    """Sieber et al. 2024, equation 21: y_t = sum_{s <= t} (q_t . k_s) v_s / eta(W_n x_t + b)."""
    mixer, x, y = built(f"norm_attention({settings})")
    heads = mixer.heads
    q, k, v = (split(affine(p, x), heads) for p in (mixer.q, mixer.k, mixer.v))
    scores = np.tril(np.einsum("bthk,bshk->bhts", q, k))
    o = np.einsum("bhts,bshv->bthv", scores, v) / ETA[eta](affine(mixer.n, x))[..., None]
    assert_close(y, affine(mixer.out, o.reshape(B, T, -1)))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("mlstm(heads=3)", "heads=3 does not divide key width 16 and value width 32: change heads or expand_k"),
        ("mlstm(input_gate='exp')", "mlstm: input_gate='exp', wanted 'exponential' or 'sigmoid'"),
        ("mlstm(normalised=False)", "an exponential gate needs the normaliser, set input_gate='sigmoid'"),
        ("mlstm(gate_cap=0)", "mlstm: gate_cap=0, wanted number > 0 or None"),
        ("flow(heads=3)", "heads=3 does not divide d_model=32"),
        ("norm_attention(heads=3)", "heads=3 does not divide key width 32 and value width 32"),
        ("norm_attention(normaliser='relu')", "norm_attention: normaliser='relu', wanted 'exp' or 'softplus' or 'sigmoid'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(spec, says):
    with pytest.raises(ValueError, match=says):
        mixers.create(spec, D, rngs=nnx.Rngs(0))
