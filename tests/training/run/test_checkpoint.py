"""Checkpoints without a run: written in the background, whole or not at all, and checked when they are read."""

import contextlib
import functools
import json
import resource
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from helpers.tiny import tiny
from seqzoo import training
from seqzoo.data.atomic_io import WriteError
from seqzoo.training.run import run_dir
from seqzoo.training.run.checkpoint import DIGESTS, REQUIRED, CheckpointError, Checkpoints, damage, misfit


@pytest.fixture(scope="module")
def sharding():
    return NamedSharding(jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,)), jax.P("fsdp"))


@pytest.fixture
def state_at(sharding):
    """state_at(step): a state whose numbers tell its step, split over four devices; `size` numbers."""

    def make(step, size=4096):
        numbers = jax.random.normal(jax.random.key(step), (size,))
        return {"params": {"w": jax.device_put(numbers, sharding)}, "step": jnp.int32(step)}

    return make


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@contextlib.contextmanager
def full_disk(room):
    """No file of this process may grow beyond `room` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def saved(folder, *states, keep=2):
    with Checkpoints(folder, keep) as checkpoints:
        checkpoints.resume(abstract(states[0]), print)
        for state in states:
            checkpoints.save(state)
    return checkpoints


def test_what_is_on_disk_is_the_state_that_was_saved_though_it_was_donated_at_once(tmp_path, state_at):
    @functools.partial(jax.jit, donate_argnums=0)
    def next_step(state):
        return {"params": {"w": state["params"]["w"] * 1.5 + 1}, "step": state["step"] + 1}

    state = next_step(state_at(0, size=1 << 20))
    wanted = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.resume(abstract(state), print)
        checkpoints.save(state)
        for _ in range(20):
            given, state = state, next_step(state)
        jax.block_until_ready(state)
        assert given["params"]["w"].is_deleted()  # steps do take their state's memory
    assert checkpoints.steps() == [1]
    assert equal(checkpoints.restore(abstract(state), print), wanted)


def test_save_returns_before_the_state_is_on_disk_and_the_context_ends_after(tmp_path, state_at, monkeypatch):
    allowed, digest = threading.Event(), Checkpoints._digest
    monkeypatch.setattr(Checkpoints, "_digest", lambda self: allowed.wait(20) and digest(self))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.resume(abstract(state_at(1)), print)
        checkpoints.save(state_at(1))
        assert checkpoints.steps() == [] and not allowed.is_set()
        allowed.set()
    assert checkpoints.steps() == [1] and damage(tmp_path / "1") is None


def test_an_incomplete_directory_is_not_a_checkpoint_and_is_removed_with_a_report(tmp_path, state_at):
    saved(tmp_path, state_at(1))
    half = tmp_path / "2.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "manifest.ocdbt").write_bytes(b"half")
    said = []
    reader = Checkpoints(tmp_path)
    assert reader.steps() == [1] and equal(reader.restore(abstract(state_at(1)), said.append), state_at(1))
    assert half.exists() and said == []  # a reader may look while a run writes
    with Checkpoints(tmp_path) as writer:
        writer.resume(abstract(state_at(1)), said.append)
    assert said == ["removed 2.orbax-checkpoint-tmp: its process ended while writing it"]
    assert writer.steps() == [1] and not half.exists()


@pytest.mark.parametrize("late", ["the next save", "the end of the context"])
def test_a_save_on_a_full_disk_is_an_error_and_complete_checkpoints_stay(tmp_path, state_at, late):
    with pytest.raises(WriteError, match=r"cannot write .*/2: .*File too large"), Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.resume(abstract(state_at(1)), print)
        checkpoints.save(state_at(1))
        checkpoints.wait()
        with full_disk(1000):
            checkpoints.save(state_at(2))
            if late == "the next save":
                checkpoints.save(state_at(3))
            else:
                checkpoints.__exit__(None, None, None)
    assert checkpoints.steps() == [1] and checkpoints.complete == 1
    assert equal(checkpoints.restore(abstract(state_at(1)), print), state_at(1))
    assert saved(tmp_path, state_at(2), keep=1).steps() == [2]  # the half that is left is not in the way


def test_an_error_in_the_context_is_reported_together_with_a_failed_save(tmp_path, state_at):
    with pytest.raises(WriteError, match=r"cannot write .*/1: .*; before that: the task broke"), full_disk(1000):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.resume(abstract(state_at(1)), print)
            checkpoints.save(state_at(1))
            raise ValueError("the task broke")


def test_a_removed_folder_is_reported_and_not_created_again(tmp_path, state_at):
    with pytest.raises(WriteError, match="is not a folder any more"), Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.resume(abstract(state_at(1)), print)
        (tmp_path / "run").rename(tmp_path / "moved")
        checkpoints.save(state_at(1))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self/ns").is_dir(), reason="needs a folder that not even root can write")
def test_a_directory_that_cannot_be_created_is_an_error_and_no_thread_waits_for_it(state_at):
    """A read-only disk, say. A thread that waited would keep the process from ending."""
    before = set(threading.enumerate())
    with pytest.raises(WriteError, match=r"cannot write .*/2: No such file"), Checkpoints(Path("/proc/self/ns")) as checkpoints:
        checkpoints.resume(abstract(state_at(2)), print)
        checkpoints.save(state_at(2))
    left = [thread.name for thread in threading.enumerate() if thread not in before and not thread.daemon]
    assert [name for name in left if not name.startswith("asyncio")] == []  # those have nothing to do, and end with the process


def test_the_latest_complete_checkpoints_are_kept(tmp_path, state_at):
    assert saved(tmp_path, *map(state_at, range(1, 6)), keep=2).steps() == [4, 5]


def harm(how, file):
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


@pytest.mark.parametrize("how", ["missing", "truncated", "one bit changed"])
def test_damage_to_any_file_of_a_checkpoint_is_reported_and_the_previous_one_is_used(tmp_path, state_at, how):
    saved(tmp_path, state_at(1), state_at(2))
    names = [str(file.relative_to(tmp_path / "2")) for file in (tmp_path / "2").rglob("*") if file.is_file()]
    idle = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # Orbax's notes on the saving, of no use for the state
    harmed = [name for name in names if name not in idle]
    assert DIGESTS in harmed and any(name.startswith("d/") for name in harmed) and len(harmed) >= 4
    whole = {name: (tmp_path / "2" / name).read_bytes() for name in harmed}
    for name in harmed:
        if not whole[name]:
            continue
        harm(how, tmp_path / "2" / name)
        said = []
        state = Checkpoints(tmp_path).restore(abstract(state_at(1)), said.append)
        assert equal(state, state_at(1)), name
        assert len(said) == 1 and f"checkpoint {tmp_path / '2'} does not load" in said[0], (name, said)
        assert name in said[0] or name == DIGESTS, (name, said)  # a changed digest says that its file is
        (tmp_path / "2" / name).write_bytes(whole[name])
    for name in idle & set(names):
        harm(how, tmp_path / "2" / name)
    assert equal(Checkpoints(tmp_path).restore(abstract(state_at(1)), print), state_at(2))


def test_a_checkpoint_without_a_file_that_every_one_has_is_damaged_whatever_its_digests_list(tmp_path, state_at):
    saved(tmp_path, state_at(1))
    for name in REQUIRED:
        aside = (tmp_path / "1" / name).rename(tmp_path / "aside")
        listed = (tmp_path / "1" / DIGESTS).read_text()
        digests = {file: digest for file, digest in json.loads(listed).items() if file != name}
        (tmp_path / "1" / DIGESTS).write_text(json.dumps(digests))
        assert damage(tmp_path / "1") == f"{name} is missing"
        (tmp_path / "1" / DIGESTS).write_text(listed)
        aside.rename(tmp_path / "1" / name)
    assert damage(tmp_path / "1") is None


def test_a_save_that_leaves_out_the_manifest_is_no_checkpoint(tmp_path, state_at):
    """Orbax does so, and reports success, where its path is a pattern that does not match itself."""
    with pytest.raises(WriteError, match=r"cannot write .*/1: manifest.ocdbt was not written"):
        saved(tmp_path / "a[1]", state_at(1))
    assert Checkpoints(tmp_path / "a[1]").steps() == []


def test_the_first_checkpoint_of_a_run_is_read_back(tmp_path, state_at, monkeypatch):
    digest, harmed = Checkpoints._digest, []

    def spoil(self):
        digest(self)
        (path,) = tmp_path.glob("1.*")
        harm("one bit changed", path / "manifest.ocdbt")
        harmed.append(path)

    monkeypatch.setattr(Checkpoints, "_digest", spoil)
    with pytest.raises(WriteError, match=r"cannot write .*/1: read back, it does not load \(manifest.ocdbt is not as it was"):
        saved(tmp_path, state_at(1))
    assert len(harmed) == 1


@pytest.mark.parametrize("name", ["a b", "\u00e4", "a]b", "a%20b", "{x}", "$HOME", "a'\"b", "a\nb", "x.orbax-checkpoint-tmp"])
def test_a_folder_of_an_unusual_name_holds_checkpoints(tmp_path, state_at, name):
    folder = tmp_path / name / "checkpoints"
    run_dir.check_path(folder)
    assert equal(saved(folder, state_at(1)).restore(abstract(state_at(1)), print), state_at(1))


def test_if_all_checkpoints_are_damaged_it_is_an_error_and_nothing_is_moved(tmp_path, state_at):
    saved(tmp_path, state_at(1), state_at(2))
    for step in (1, 2):
        harm("missing", tmp_path / str(step) / "manifest.ocdbt")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=r"step 2: manifest.ocdbt is missing; step 1:"):
        checkpoints.resume(abstract(state_at(1)), print)
    assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer__noise": 1e-4, "optimizer__accumulate_steps": "0:1, 9:2", "optimizer__skip_limit": 2},
        {
            "optimizer__rule": "adafactor",
            "training__ema": 0.9,
            "model__layers": ("mamba(state=4)", "gla(heads=2)"),
            "model__depth": 3,
        },
        {"optimizer__rule": "muon", "model__param_dtype": "bfloat16"},
    ],
    ids=("a random key", "factored moments", "bfloat16"),
)
def test_a_checkpoint_fits_the_settings_it_was_saved_with_and_no_others(values, tmp_path):
    """A random key in the optimizer's state is stored as its words."""
    setup = training.prepare(tiny(**values))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.resume(setup.abstract, print)
        checkpoints.save(training.initialise(setup))
    assert misfit(tmp_path / "0", setup.abstract) is None
    assert "optimizer state" in misfit(tmp_path / "0", training.prepare(tiny(**values | {"optimizer__rule": "sgd"})).abstract)
    wider = training.prepare(tiny(**values, model__d_model=32)).abstract
    assert "parameter embedding is (32, 16) there, (32, 32) here" in misfit(tmp_path / "0", wider)
