"""Profiling: traces contain the steps of their window, programs and memory are those of the step, the compilation cache is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.tiny import quiet, tiny
from seqzoo import training
from seqzoo.training import WriteError
from seqzoo.training.run import profiling


@pytest.fixture
def tracer(monkeypatch):
    """Calls of jax.profiler, in its place."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


@pytest.mark.parametrize(
    ("window", "steps", "traced"),
    [
        ((2, 4), range(10), [2, 3]),
        ((0, 1), range(10), [0]),
        ((2, 4), range(3, 10), [3]),  # resumed inside the window
        ((2, 4), range(5, 10), []),  # resumed after it
        ((8, 20), range(10), [8, 9]),  # the run ends inside it
        (None, range(10), []),
    ],
)
def test_the_trace_holds_the_steps_of_its_window(tracer, tmp_path, window, steps, traced):
    profiler = profiling.Profiler(window, tmp_path)
    for step in steps:
        profiler.at(step, lambda: jnp.zeros(()))
        tracer.append(step)
    profiler.close()
    profiler.close()
    inside, found = False, []
    for call in tracer:
        if isinstance(call, int):
            found += [call] if inside else []
        else:
            inside = call != "stop"
    assert found == traced and not inside
    assert tracer.count("stop") == len([call for call in tracer if call == ("start", str(tmp_path / "profile"))]) == bool(traced)


def test_a_trace_is_written_that_holds_the_step(tmp_path):
    profiler = profiling.Profiler((0, 1), tmp_path)
    step = jax.jit(lambda x: x @ x)
    profiler.at(0, lambda: None)
    profiler.at(1, lambda: step(jnp.ones((64, 64))))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.fixture(scope="module")
def step():
    """(lowered, compiled, setup) of a tiny experiment's training step on two devices."""
    setup = training.prepare(tiny(mesh__fsdp=2))
    with jax.set_mesh(setup.mesh):
        lowered = training.train_step(setup).lower(setup.abstract, setup.task.spec(0))
        return lowered, lowered.compile(), setup


def test_the_step_is_written_before_and_after_compilation(step, tmp_path):
    lowered, compiled, _ = step
    profiling.dump_hlo(lowered, compiled, tmp_path)
    names = sorted(path.name for path in (tmp_path / "hlo").iterdir())
    assert names == ["train_step.hlo.txt", "train_step.stablehlo.txt"]
    assert "stablehlo." in (tmp_path / "hlo" / names[1]).read_text()
    assert (tmp_path / "hlo" / names[0]).read_text().startswith("HloModule")


def test_the_memory_of_the_step_counts_the_state_on_each_device(step):
    _, compiled, setup = step
    found = profiling.memory(compiled)
    local = lambda leaf: int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int)) * leaf.dtype.itemsize
    arrays = jax.tree.leaves({key: value for key, value in setup.abstract.items() if key != "rng"})
    state = sum(map(local, arrays)) + 8  # the key is two uint32
    assert found.arguments == pytest.approx(state, rel=0.05) and found.outputs >= found.aliased > 0.9 * state
    assert found.temporaries > 0 and found.total == found.arguments + found.outputs + found.temporaries - found.aliased


def test_memory_is_shown_in_words():
    said = str(profiling.Memory(total=3_500_000, arguments=2_000_000, outputs=2_000_000, temporaries=1_000_000, aliased=1_500_000))
    assert said == (
        "3.5 MB on each device: 2.0 MB arguments, 2.0 MB outputs (1.5 MB of them in place of arguments), 1.0 MB temporaries"
    )


@pytest.mark.parametrize(
    ("window", "steps", "says"),
    [
        (None, (4, 9), None),
        ((5, 7), (4, 9), None),
        ((2, 6), (4, 9), "steps 4:6 only"),
        ((7, 12), (4, 9), "steps 7:9 only"),
        ((20, 23), (4, 9), "nothing"),
        ((1, 3), (4, 9), "nothing"),
    ],
)
def test_a_window_outside_of_the_run_is_reported(tmp_path, window, steps, says):
    note = profiling.Profiler(window, tmp_path).note(*steps)
    assert (note is None) if says is None else f"traces {says}" in note


def test_a_finished_run_reports_that_nothing_is_traced(tmp_path):
    training.train(tiny(), tmp_path / "run", console=quiet())
    console = quiet()
    training.train(tiny(run__profile="1:3"), tmp_path / "run", console=console)
    assert "run.profile traces nothing: the run is finished" in console.file.getvalue()


def test_a_backend_without_memory_analysis_has_no_memory_report():
    class Silent:
        def memory_analysis(self):
            return None

    assert profiling.memory(Silent()) is None


def test_what_is_compiled_is_kept_in_the_folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        profiling.enable_compilation_cache(str(tmp_path / "cache"))
        jax.jit(lambda x: x * 3 + 41)(jnp.ones(7)).block_until_ready()  # the session's fixture lowers JAX's least time to 0
        assert list((tmp_path / "cache").iterdir())
    finally:
        profiling.enable_compilation_cache(before)


def test_a_compilation_cache_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"cannot write .*file/cache"):
        profiling.enable_compilation_cache(str(tmp_path / "file" / "cache"))
