"""Long rows: over eight devices, as benchmarks/long_context.py records at 65,536 tokens, and in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.long_context import DEVICES, Settings, run
from helpers.tolerances import RELATIVE, assert_close
from seqzoo import mixers


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["gla(heads=2)", "mamba"])
def test_time_over_eight_devices_takes_an_eighth_of_the_memory_of_each(spec):
    result = run(spec, Settings(length=8192))
    assert result["ratio"] > 0.8 * DEVICES
    assert result["worst_error"] < 1e-5


@pytest.mark.parametrize("spec", mixers.names())
@pytest.mark.parametrize(
    "dtype", [pytest.param("float16", marks=pytest.mark.slow), pytest.param("bfloat16", marks=pytest.mark.exhaustive)]
)
def test_a_row_of_8192_tokens_in_half_precision_is_finite_and_near_float32(spec, dtype):
    """Sums over a row leave the range of float16, and so does 1 over a small epsilon: quotients are taken in float32."""
    length, width = 8192, 64 if spec == "mamba2" else 32
    x = jnp.asarray(0.5 * np.random.default_rng(0).standard_normal((1, length, width)), dtype)
    ids = jnp.where(jnp.arange(length) < length - 5, 1, 0)[None]
    real = (ids != 0)[..., None]
    noise = np.random.default_rng(1)
    params = nnx.split(mixers.create(spec, width, rngs=nnx.Rngs(0)))[1]
    params = jax.tree.map(lambda leaf: leaf + 0.1 * noise.standard_normal(leaf.shape).astype(np.float32), params)

    def outputs(dtype):
        graphdef = nnx.split(nnx.eval_shape(lambda: mixers.create(spec, width, dtype=dtype, rngs=nnx.Rngs(0))))[0]

        @jax.jit
        def run(params, x):
            mixer = nnx.merge(graphdef, params)
            y, state = mixer(x, state=mixer.init_state(1, length), segment_ids=ids)
            return y, jax.tree.map(lambda leaf: jnp.where(leaf == -jnp.inf, 0, leaf), state)

        return run(params, x.astype(dtype))

    y, state = outputs(dtype)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((y, state))), "not finite"
    found, wanted = (np.where(real, np.asarray(y, np.float64), 0) for y in (y, outputs("float32")[0]))
    assert_close(found, wanted, tolerance=RELATIVE["bfloat16"], what=f"{spec} in {dtype}")
