"""Skipped steps: they change nothing and are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from seqzoo.config import Optimizer
from seqzoo.training.optim import skip_nonfinite
from seqzoo.training.optim.optimizer import make_optimizer

PARAMETERS = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([-0.0, 0.5])}
GRADIENT = jax.tree.map(jnp.ones_like, PARAMETERS)


def stepper(tx):
    """step(parameters, state, gradient, loss) -> (parameters, state), jitted, both donated."""

    def step(parameters, state, gradient, loss):
        updates, state = tx.update(gradient, state, parameters, value=loss)
        return optax.apply_updates(parameters, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def start(tx):
    return jax.tree.map(jnp.copy, PARAMETERS), jax.jit(tx.init)(PARAMETERS)


def bits(tree):
    keys = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [np.asarray(jax.random.key_data(leaf) if keys(leaf) else leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    ("gradient", "loss"),
    [
        ({**GRADIENT, "b": jnp.array([0.0, jnp.nan])}, 1.0),
        ({**GRADIENT, "b": jnp.array([0.0, -jnp.inf])}, 1.0),
        (GRADIENT, jnp.nan),
        (GRADIENT, jnp.inf),
    ],
    ids=["nan", "inf", "loss nan", "loss inf"],
)
def test_a_step_that_is_not_finite_changes_no_bit_of_parameters_and_moments_and_is_counted(gradient, loss):
    tx = skip_nonfinite.skip_nonfinite(optax.chain(optax.add_noise(0.1, 0.5, 0), optax.scale_by_adam()))
    run = stepper(tx)
    parameters, state = run(*start(tx), GRADIENT, 1.0)
    before = bits((parameters, state.inner, state.norm, state.accepted))
    for in_a_row in (1, 2):
        parameters, state = run(parameters, state, gradient, loss)
        assert bits((parameters, state.inner, state.norm, state.accepted)) == before
        assert tuple(map(int, skip_nonfinite.skip_counts(state))) == (in_a_row, in_a_row)
    parameters, state = run(parameters, state, GRADIENT, 1.0)
    assert bits((parameters, state.inner)) != before and tuple(map(int, skip_nonfinite.skip_counts(state))) == (2, 0)


def test_skip_nonfinite_changes_nothing_if_all_steps_are_finite():
    plain, guarded = optax.adam(0.1), skip_nonfinite.skip_nonfinite(optax.adam(0.1))
    run, guarded_run = stepper(optax.with_extra_args_support(plain)), stepper(guarded)
    (parameters, state), (p, s) = start(plain), start(guarded)
    for _ in range(3):
        parameters, state = run(parameters, state, GRADIENT, 1.0)
        p, s = guarded_run(p, s, GRADIENT, 1.0)
    np.testing.assert_array_equal(np.concatenate([parameters["w"][0], parameters["b"]]), np.concatenate([p["w"][0], p["b"]]))


def test_a_spike_is_a_norm_above_the_factor_times_the_mean_of_accepted_steps():
    """Against the definition in NumPy, over steps of random size; nothing is a spike before MEMORY steps were accepted."""
    tx, rng = skip_nonfinite.skip_nonfinite(optax.identity(), 3.0), np.random.default_rng(0)
    run, (parameters, state) = stepper(tx), start(tx)
    unit = jax.tree.map(lambda leaf: leaf / optax.tree.norm(GRADIENT), GRADIENT)
    mean, accepted, total, early, spikes = 0.0, 0, 0, 0, 0
    for step in range(2 * skip_nonfinite.MEMORY):
        norm = rng.uniform(0.5, 1.5) * (20 if step % 7 == 5 else 1)
        wanted = accepted >= skip_nonfinite.MEMORY and norm > 3 * mean
        early += accepted < skip_nonfinite.MEMORY and norm > 3 * mean
        spikes += wanted
        if not wanted:
            accepted += 1
            mean += (norm - mean) / min(accepted, skip_nonfinite.MEMORY)
        parameters, state = run(parameters, state, jax.tree.map(lambda leaf, norm=norm: norm * leaf, unit), 1.0)
        total, in_a_row = map(int, skip_nonfinite.skip_counts(state))
        assert (total, in_a_row > 0) == (spikes, wanted), f"step {step}: norm {norm}, mean {mean}"
        np.testing.assert_allclose(state.norm, mean, rtol=1e-5)
    assert early and spikes


def test_a_gradient_whose_norm_overflows_its_own_precision_is_no_overflow():
    gradient = {"w": jnp.full((2, 3), 200.0, jnp.float16), "b": jnp.full(2, 200.0, jnp.float16)}
    tx = skip_nonfinite.skip_nonfinite(optax.identity())
    _, state = tx.update(gradient, tx.init(gradient), gradient, value=1.0)
    assert int(state.total) == 0


def test_the_learning_rate_follows_the_schedule_while_steps_are_skipped():
    axes = {"w": ("embed", "heads"), "b": ("heads",)}
    state = nnx.State({name: nnx.Param(leaf, axes=axes[name]) for name, leaf in PARAMETERS.items()})
    falling = dict(schedule="linear(warmup_steps=0, final_fraction=0.0)", learning_rate=1.0)
    plain = dict(rule="sgd(momentum=0.0, weight_decay=0.0)", clip_norm=None)
    tx = make_optimizer(Optimizer(**falling, **plain, skip_limit=3), 4, state)
    opt_state, moved = tx.init(PARAMETERS), []
    for loss in (1.0, jnp.nan, jnp.nan, 1.0):
        updates, opt_state = tx.update(GRADIENT, opt_state, PARAMETERS, value=loss)
        moved.append(float(updates["b"][0]))
    assert moved == [-1.0, 0.0, 0.0, -0.25] and tuple(map(int, skip_nonfinite.skip_counts(opt_state))) == (2, 0)


def test_an_optimizer_without_skip_nonfinite_has_no_skip_counts():
    with pytest.raises(ValueError, match=r"optimizer\.skip_limit is None, wanted a number"):
        skip_nonfinite.skip_counts(optax.adam(0.1).init(PARAMETERS))
