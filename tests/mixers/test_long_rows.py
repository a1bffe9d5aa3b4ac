"""A long row over eight devices: what benchmarks/long_context.py records at 65,536 tokens, at a length for tests."""

import pytest

from benchmarks.long_context import DEVICES, Settings, run


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["gla(heads=2)", "mamba"])
def test_time_over_eight_devices_takes_an_eighth_of_the_memory_of_each(spec):
    result = run(spec, Settings(length=8192))
    assert result["ratio"] > 0.8 * DEVICES
    assert result["worst_error"] < 1e-5
