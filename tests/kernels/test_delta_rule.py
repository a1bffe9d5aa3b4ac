"""Delta rules: their formula, reflections, and keys so alike that careless inverses lose all digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.tolerances import assert_close
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_attention.delta_rule import delta_rule

IMPLEMENTATIONS = ["recurrent", "chunkwise"]
B, H, K, V = 1, 2, 8, 5


def draw(length, *, cosine=0.0, seed=0, width=K):
    """q, k, v without beta; any two keys have that cosine on average."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(1, 1, H, width))
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    own = random.normal(size=(B, length, H, width))
    common = unit(common)
    own = unit(own - (own * common).sum(-1, keepdims=True) * common)
    k = np.sqrt(cosine) * common + np.sqrt(1 - cosine) * own
    q, v = random.normal(size=(B, length, H, width)), random.normal(size=(B, length, H, V))
    return {name: x.astype(np.float32) for name, x in {"q": q, "k": k, "v": v}.items()}


def everything(arrays, **settings):
    """Outputs, the last state, and the gradients of a fixed projection of both."""

    def loss(arrays):
        o, last = delta_rule(**arrays, **settings)
        return jnp.sum(jnp.sin(jnp.arange(o.size)).reshape(o.shape) * o) + jnp.sum(last), (o, last)

    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return {"output": outputs[0], "last": outputs[1], **gradients}


def exact(arrays, **settings):
    with jax.enable_x64(True):
        wide = {name: np.asarray(x, np.float64) for name, x in arrays.items()}
        return jax.tree.map(np.asarray, everything(wide, implementation="reference", **settings))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [64, 128])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_keys_that_resemble_each_other_keep_their_digits(beta, chunk):
    arrays = draw(4096, cosine=0.8, width=64) | {"beta": np.full((B, 4096, H), beta, np.float32)}
    wanted = exact(arrays)
    # A reflection keeps all errors made before it: with beta 2, float32 is 2.3e-6 off step by step, and in chunks of 128 between
    # 0.9e-5 and 1.2e-5, by processor.
    tolerance = 2e-5 if (beta, chunk) == (2.0, 128) else 1e-5
    assert_close(everything(arrays, implementation="chunkwise", chunk_size=chunk), wanted, tolerance=tolerance)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_with_beta_zero_nothing_is_written(implementation):
    arrays = draw(19) | {"beta": np.zeros((B, 19, H), np.float32)}
    state = np.ones((B, H, K, V), np.float32)
    o, last = delta_rule(**arrays, initial_state=state, implementation=implementation)
    np.testing.assert_array_equal(last, state)
    assert_close(o, K**-0.5 * np.einsum("bthk,bhkv->bthv", arrays["q"], state))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_with_beta_one_the_key_reads_its_value(implementation):
    arrays = draw(19) | {"beta": np.ones((B, 19, H), np.float32)}
    o, _ = delta_rule(arrays["k"], **{n: arrays[n] for n in ("k", "v", "beta")}, scale=1.0, implementation=implementation)
    assert_close(o, arrays["v"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_with_beta_two_a_token_is_a_reflection(implementation):
    """Two tokens alike undo each other where nothing is written: the way to count modulo two."""
    arrays = draw(1, seed=3)
    twice = {name: np.repeat(x, 2, axis=1) for name, x in arrays.items()} | {"beta": np.full((B, 2, H), 2, np.float32)}
    twice["v"][:] = 0
    state = np.random.default_rng(1).normal(size=(B, H, K, V)).astype(np.float32)
    once = {name: x[:, :1] for name, x in twice.items()}
    _, middle = delta_rule(**once, initial_state=state, implementation=implementation)
    _, last = delta_rule(**twice, initial_state=state, implementation=implementation)
    assert_close(last, state)
    assert not np.allclose(middle, state, atol=0.1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(B, 21, H), (B, 21, H, K)])
def test_the_rule_is_its_formula(implementation, shape):
    random = np.random.default_rng(2)
    arrays = draw(21) | {
        "beta": random.uniform(0, 2, (B, 21, H)).astype(np.float32),
        "log_decay": -random.uniform(0, 0.5, shape).astype(np.float32),
    }
    o, last = delta_rule(**arrays, implementation=implementation, chunk_size=4)
    s, wide = np.zeros((H, K, V)), {name: np.asarray(x[0], np.float64) for name, x in arrays.items()}
    for t in range(21):
        s = np.exp(wide["log_decay"][t].reshape(H, -1, 1)) * s
        found = np.einsum("hk,hkv->hv", wide["k"][t], s)
        s = s + np.einsum("h,hk,hv->hkv", wide["beta"][t], wide["k"][t], wide["v"][t] - found)
        assert_close(o[0, t], K**-0.5 * np.einsum("hk,hkv->hv", wide["q"][t], s), what=f"token {t}")
    assert_close(last[0], s)


def test_an_undecayed_read_sees_the_state_before_its_decay():
    arrays = draw(9) | {"beta": np.ones((B, 9, H), np.float32), "log_decay": np.full((B, 9, H), -0.3, np.float32)}
    kept = np.exp(np.float32(-0.3)) * arrays["k"]
    assert_close(delta_rule(**arrays, undecayed=kept), delta_rule(**arrays))


def test_a_term_is_refused_where_it_means_nothing():
    arrays = draw(3)
    with pytest.raises(ValueError, match="wanted both or a alone"):
        linear_attention(**arrays, b=arrays["k"])
    with pytest.raises(ValueError, match="wanted one of them"):
        linear_attention(**arrays, a=arrays["k"], value_log_decay=np.zeros_like(arrays["v"]))
    with pytest.raises(ValueError, match=r"a has shape \(1, 3, 2, 7\), wanted q's \(1, 3, 2, 8\)"):
        linear_attention(**arrays, a=arrays["k"][..., 1:])
