"""The learning rate against its formulas, at every step."""

import math

import numpy as np
import pytest

from seqzoo.training.optim import schedules


def formula(name, step, *, p, w, n, f, c):
    """The formulas in the docstrings of the schedules."""
    if step < w:
        return p * step / w
    x = (step - w) / (n - w)
    down = 1 - (1 - f) * max(0, 1 - (n - step) / c) if c else 1
    return {
        "constant": lambda: p,
        "linear": lambda: p * (1 - (1 - f) * x),
        "cosine": lambda: p * (f + (1 - f) * (1 + math.cos(math.pi * x)) / 2),
        "wsd": lambda: p * down,
        "rsqrt": lambda: p * math.sqrt(w / max(step, w)) * down,
    }[name]()


@pytest.mark.parametrize(
    ("name", "settings", "cooldown"),
    [
        ("constant", {}, 0),
        ("constant", {"warmup_steps": 0}, 0),
        ("linear", {"final_fraction": 0.25}, 0),
        ("linear", {"warmup_steps": 0, "final_fraction": 0.0}, 0),
        ("cosine", {"final_fraction": 0.25}, 0),
        ("cosine", {"warmup_steps": 0}, 0),
        ("wsd", {}, 22),
        ("wsd", {"final_fraction": 0.0, "cooldown_fraction": 0.5}, 55),
        ("wsd", {"cooldown_fraction": 1.0}, 100),
        ("wsd", {"cooldown_fraction": 1e-9, "warmup_steps": 0}, 1),
        ("rsqrt", {}, 0),
        ("rsqrt", {"cooldown_fraction": 0.3, "final_fraction": 0.25}, 33),
    ],
)
def test_a_schedule_is_its_formula_from_the_first_step_to_the_last(name, settings, cooldown):
    settings = {"warmup_steps": 10, **settings}
    rate = schedules.registry.get(name)(**settings).schedule(2.0, 110)
    facts = {"p": 2.0, "w": settings["warmup_steps"], "n": 110, "f": settings.get("final_fraction", 0.1), "c": cooldown}
    found, wanted = zip(*((float(rate(step)), formula(name, step, **facts)) for step in range(111)), strict=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd", "rsqrt"])
def test_a_run_that_ends_in_its_warm_up_has_a_learning_rate_all_the_same(name):
    rates = [float(schedules.registry.create(f"{name}(warmup_steps=8)").schedule(1.0, 4)(step)) for step in range(5)]
    np.testing.assert_allclose(rates, np.arange(5) / 8, rtol=1e-6)
