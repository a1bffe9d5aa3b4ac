"""Update rules and schedules of a user's own: functions of their settings, and classes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from seqzoo.config import ConfigError, Optimizer
from seqzoo.model import params
from seqzoo.training import optim
from seqzoo.training.optim.optimizer import make_optimizer, make_schedule
from seqzoo.training.optim.schedules import FunctionSchedule
from seqzoo.training.optim.update_rules import FunctionRule


@pytest.fixture
def registered(monkeypatch):
    """Registries whose new entries go with the test."""
    for registry in (optim.update_rules.registry, optim.schedules.registry):
        monkeypatch.setattr(registry, "_table", dict(registry._table))


def sign_sgd(weight_decay: float = 0.0, *, parameters: nnx.State) -> optax.GradientTransformation:
    """The sign of the gradient."""
    return optax.chain(optax.scale_by_sign(), optax.add_decayed_weights(weight_decay, params.decay_mask(parameters)))


def halving(learning_rate: float, steps: int, *, times: int = 2) -> optax.Schedule:
    """Half the learning rate, several times in a run."""
    return optax.exponential_decay(learning_rate, steps // (times + 1), 0.5, staircase=True)


def test_functions_are_an_update_rule_and_a_schedule_with_their_arguments_as_settings(registered):
    assert optim.register("sign_sgd")(sign_sgd) is sign_sgd and optim.register_schedule("halving")(halving) is halving
    settings = Optimizer(rule="sign_sgd(weight_decay=0.5)", schedule="halving(times=1)", learning_rate=0.1, clip_norm=None)
    assert Optimizer.model_validate_json(settings.model_dump_json()) == settings
    axes = {"w": ("embed", "heads"), "b": ("heads",)}
    state = nnx.State({name: nnx.Param(jnp.full((2,) * len(axes[name]), 3.0), axes=axes[name]) for name in axes})
    tx, values = make_optimizer(settings, 4, state), nnx.to_pure_dict(state)
    updates, _ = tx.update(jax.tree.map(jnp.negative, values), tx.init(values), values)
    np.testing.assert_allclose(updates["w"], -0.1 * (-1 + 0.5 * 3), rtol=1e-6)
    np.testing.assert_allclose(updates["b"], 0.1, rtol=1e-6, err_msg="the mask of the model's parameters reaches the function")
    np.testing.assert_allclose([make_schedule(settings, 4)(step) for step in range(4)], [0.1, 0.1, 0.05, 0.05], rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rule": "sign_sgd(weight_decay='a')"}, "rule: sign_sgd: weight_decay='a', wanted number"),
        ({"rule": "sign_sgd(decay=1.0)"}, "sign_sgd has no setting 'decay'. Did you mean 'weight_decay'"),
        ({"rule": "sign_sgd(parameters=1)"}, "sign_sgd has no setting 'parameters'. Settings: weight_decay$"),
        ({"schedule": "halving(times=2.5)"}, "schedule: halving: times=2.5, wanted int"),
        ({"schedule": "halving(steps=5)"}, "halving has no setting 'steps'"),
    ],
)
def test_the_arguments_of_a_function_are_checked_like_other_settings(registered, wrong, says):
    optim.register("sign_sgd")(sign_sgd)
    optim.register_schedule("halving")(halving)
    with pytest.raises(ConfigError, match=says):
        Optimizer(**wrong)


@pytest.mark.parametrize("kind", [FunctionRule, FunctionSchedule])
def test_a_function_whose_arguments_have_no_names_is_refused(kind):
    with pytest.raises(TypeError, match=r"anything has the argument \*\*more; wanted arguments with names only"):

        def anything(**more):
            return more

        optim.functions.settings_of_function(anything, kind)


def test_a_class_is_an_update_rule_with_typed_settings(registered):
    @optim.register("nothing")
    class Nothing(optim.UpdateRule):
        """No step but weight decay."""

        def transformation(self, parameters):
            return optax.chain(optax.set_to_zero(), self.decay(parameters))

    assert Optimizer(rule=Nothing(weight_decay=0.2)).rule == "nothing(weight_decay=0.2)"
    state = nnx.State({"w": nnx.Param(jnp.ones((2, 2)), axes=("embed", "heads"))})
    tx = make_optimizer(
        Optimizer(rule="nothing(weight_decay=0.2)", schedule="constant(warmup_steps=0)", learning_rate=1.0), 4, state
    )
    values = nnx.to_pure_dict(state)
    updates, _ = tx.update(values, tx.init(values), values)
    np.testing.assert_allclose(updates["w"], -0.2, rtol=1e-6)


@pytest.mark.parametrize("registry", [optim.update_rules.registry, optim.schedules.registry], ids=lambda registry: registry.kind)
def test_every_setting_out_of_its_range_is_one_line_that_names_it(registry):
    """The issue's list of values for every declared setting: what is not accepted names the setting and what was wanted."""
    for name in registry.names():
        for setting in registry.get(name).model_fields:
            for value in (0, -1, 2.5, "x", None, True, 10**9, float("nan")):
                try:
                    registry.get(name)(**{setting: value})
                except ValueError as error:
                    assert str(error).startswith(f"{name}: {setting}=") and "wanted" in str(error) and "\n" not in str(error)
                else:
                    assert not isinstance(value, str) and value == value, f"{name}({setting}={value!r}) was accepted"
