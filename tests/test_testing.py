"""The checks of the law find what they are for: a mixer that keeps it passes, and each way to break it fails its check."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqzoo import mixers, testing
from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.mixers.base import next_state
from seqzoo.nn import Linear
from seqzoo.testing import checks


class AverageState(NamedTuple):
    """The mean of the tokens so far."""

    mean: jax.Array  # [b, d] float32
    segment: jax.Array  # [b] int32


class Average(mixers.Mixer):
    """y_t = W m_t with m_t = (m_{t-1} + x_t) / 2; subclasses break the law by one line each."""

    def setup(self, rngs, depth):
        self.out = Linear(self.d_model, self.d_model, **self.factory_kwargs(rngs))

    def average(self, x, initial, first_id, segment_ids):
        half = jnp.full((1, 1, x.shape[-1]), 0.5, x.dtype)
        return linear_recurrence(half, x / 2, initial_state=initial, initial_segment=first_id, segment_ids=segment_ids)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        mean, last = self.average(x, *(None, None) if state is None else state, segment_ids)
        return self.out(mean), next_state(state, segment_ids, mean=last)

    def init_state(self, batch, max_length=None, dtype=None):
        return AverageState(jnp.zeros((batch, self.d_model)), jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length):
        return 2 * batch * length * self.d_model**2


class SeesTheNextToken(Average):
    """Not causal within a call."""

    def average(self, x, *others):
        return super().average(x + 0.1 * jnp.roll(x, -1, axis=1), *others)


class LosesDigits(Average):
    """Not precise in float32."""

    def average(self, x, *others):
        return super().average(x * 1.0001 if x.dtype == jnp.float32 else x, *others)


class ForgetsItsState(Average):
    """Begins empty at every call."""

    def average(self, x, initial, first_id, segment_ids):
        return super().average(x, None, None, segment_ids)


class IgnoresDocuments(Average):
    """Takes a row for one document."""

    def average(self, x, initial, first_id, segment_ids):
        return super().average(x, initial, None, None)


class ReadsPadding(Average):
    """Multiplies by its input, also at padding: the gradient of its weights is a sum of 0 NaN."""

    def __call__(self, x, **others):
        y, state = super().__call__(x, **others)
        return y * x, state


class DividesByItsInput(Average):
    """Not finite where x is 0."""

    def average(self, x, *others):
        return super().average(x / jnp.where(jnp.all(x == 0), 0, 1), *others)


class ReturnsAStateUnasked(Average):
    """Returns a state where none was given."""

    def __call__(self, x, *, state=None, **others):
        return super().__call__(x, state=self.init_state(len(x)) if state is None else state, **others)


class CountsHalf(Average):
    """Reports half of its FLOPs."""

    def flops(self, batch, length):
        return super().flops(batch, length) // 2


def under_test(mixer):
    return testing.MixerUnderTest(mixer, d_model=8, seed=3)


def test_a_mixer_of_another_project_keeps_the_law_without_being_registered():
    testing.check_mixer(Average, d_model=8)


@pytest.mark.parametrize(
    ("mixer", "check"),
    [
        (LosesDigits, checks.check_precision),
        (SeesTheNextToken, checks.check_causality),
        (ForgetsItsState, checks.check_split),
        (IgnoresDocuments, checks.check_packing),
        (ReadsPadding, checks.check_padding),
        (DividesByItsInput, checks.check_finite),
        (ReturnsAStateUnasked, checks.check_defaults),
        (CountsHalf, checks.check_flops),
    ],
)
def test_a_mixer_that_breaks_the_law_fails_the_check_of_it(mixer, check):
    with pytest.raises(AssertionError, match=rf"^{mixer.__name__} \(d_model 8, seed 3, rows 2 x 44\)"):
        check(under_test(mixer))


def test_a_check_names_the_leaf_its_shape_and_both_errors():
    wanted = {"a": np.ones((2, 3)), "b": np.ones(4)}
    message = r"^here: relative rms error above 1e-05: \['b'\] \(4,\): 1.00e-03, largest difference 1.00e-03$"
    with pytest.raises(AssertionError, match=message):
        testing.assert_close({"a": wanted["a"], "b": 1.001 * wanted["b"]}, wanted, what="here")
