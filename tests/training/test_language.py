"""Language-model runs: losses in chunks, micro-batches, carried states, batches read on the host."""

import functools
import json
import math
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import counting
from helpers.tiny import quiet, stopping, tiny
from helpers.tolerances import RELATIVE, assert_close
from seqzoo import cli, data, training
from seqzoo.config import Experiment
from seqzoo.model import sharding
from seqzoo.model.sharding import ShardingError
from seqzoo.training import input_pipeline, step
from seqzoo.training.loss import token_losses
from seqzoo.training.run import metrics
from seqzoo.training.state import averaged

STREAM = dict(task="counting(stream=True)", model__layers=("gla(heads=2)",))


def setup_of(**values):
    return training.prepare(tiny(**{"task": "counting()", "model__layers": ("gla(heads=2)",), **values}))


def host_batch(setup, index=0):
    spec = setup.task.spec(index)
    return setup.task.rows(spec, index, slice(0, spec.batch))


@pytest.mark.parametrize("length, chunk", [(12, 4), (13, 4), (13, 1), (13, 40)])
def test_a_chunked_loss_and_its_gradients_equal_those_of_the_whole_row(length, chunk):
    key = jax.random.key(0)
    x, w = jax.random.normal(key, (2, length, 6)), jax.random.normal(jax.random.fold_in(key, 1), (6, 11))
    targets = jax.random.randint(jax.random.fold_in(key, 2), (2, length), 0, 11, jnp.int32)

    def both(chunk):
        def loss(x, w):
            found = token_losses(lambda x: x @ w, x, targets, chunk)
            return jnp.sum(jnp.cos(found.cross_entropy) + found.log_z**2), found

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, w)

    assert_close(both(chunk), both(None))
    logits = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    z = np.log(np.exp(logits).sum(-1))
    (_, found), _ = both(chunk)
    assert_close(found.cross_entropy, z - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0])
    np.testing.assert_array_equal(found.correct, logits.argmax(-1) == targets)


def test_a_chunked_loss_holds_one_chunk_of_logits_in_memory():
    def planned(chunk):
        x, w, targets = jnp.zeros((2, 512, 16)), jnp.zeros((16, 1024)), jnp.zeros((2, 512), jnp.int32)
        loss = lambda x, w: token_losses(lambda x: x @ w, x, targets, chunk).cross_entropy.sum()
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, w).compile().memory_analysis().temp_size_in_bytes

    assert planned(16) < planned(None) / 8


def test_with_time_sharded_each_device_computes_the_loss_of_its_own_tokens():
    """And the numbers are the whole's: 2 x 4 devices, pieces of 5 tokens in chunks of 2."""
    mesh = sharding.make_mesh({"replica": 1, "fsdp": 2, "seq": 4, "tensor": 1}, sharding.RULES)
    x, w = jax.random.normal(jax.random.key(0), (2, 20, 4)), jax.random.normal(jax.random.key(1), (4, 9))
    targets = jax.random.randint(jax.random.key(2), (2, 20), 0, 9, jnp.int32)
    loss = lambda x, w: token_losses(lambda x: x @ w, x, targets, 2).cross_entropy.sum()
    wanted = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, w)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, jax.NamedSharding(mesh, jax.P("fsdp", "seq")))
        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(x, w).compile()
        assert_close(run(x, w), wanted)
    assert "all-gather" not in run.as_text()


def test_bytes_in_a_padded_vocabulary_are_split_over_tensor_and_give_the_same(tmp_path):
    """257 ids do not divide over two devices, 264 rows do: losses, hits and gradients of an unpadded model on one device."""
    for i in range(8):
        (tmp_path / f"{i}.txt").write_text(f"document {i} says that it is document {i}. " * 8)
    task = f"text(source={str(tmp_path)!r}, length=16, batch_size=4, eval_tokens=64, held_out=0.3)"
    values = {"task": task, "model__layers": ("softmax(heads=2)",), "training__loss_chunk": 5, "training__z_loss": 0.1}
    with pytest.raises(
        ShardingError, match=r"'vocab' of size 257 does not divide over mesh.tensor=2; wanted model.pad_vocab=2, or"
    ):
        setup_of(**values, mesh__tensor=2)
    plain, padded = setup_of(**values), setup_of(**values, model__pad_vocab=8, mesh__tensor=2)
    parameters = training.initialise(plain)["params"]
    first = training.initialise(padded)["params"]
    np.testing.assert_array_equal(first["embedding"], np.pad(parameters["embedding"], [(0, 7), (0, 0)]))
    rows = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    wide = parameters | {"embedding": np.concatenate([parameters["embedding"], 9 * rows])}
    wide = jax.device_put(wide, padded.shardings["params"])
    assert {shard.data.shape for shard in wide["embedding"].addressable_shards} == {(132, 16)}
    found = []
    for setup, values in ((plain, parameters), (padded, wide)):
        with jax.set_mesh(setup.mesh):
            arguments = values, host_batch(setup), None, jax.random.key(0)
            run = jax.jit(functools.partial(step.gradients, setup)).lower(*arguments).compile()
            gradient, means, _ = run(*arguments)
            found.append((gradient, means))
    assert "collective-permute" not in run.as_text(), "each device keeps the logits of its own rows"
    (wanted, means), (gradient, padded_means) = found
    np.testing.assert_array_equal(gradient["embedding"][257:], 0)
    assert_close(gradient | {"embedding": gradient["embedding"][:257]}, wanted)
    assert_close(padded_means, means)


Z_LOSS = pytest.param({"training__z_loss": 0.1, "training__loss_chunk": 3}, marks=pytest.mark.slow)


@pytest.mark.parametrize("values", [{}, Z_LOSS, STREAM], ids=["plain", "z", "stream"])
def test_micro_batches_give_the_gradient_of_the_batch_for_any_distribution_of_weights(values):
    found = []
    for count in (1, 4):
        setup = setup_of(**{"training__micro_batches": count, **values})
        state = training.initialise(setup)
        gradients = jax.jit(functools.partial(step.gradients, setup))
        found.append(gradients(state["params"], host_batch(setup), state.get("carry"), jax.random.key(0)))
    assert_close(found[1], found[0])
    weights = host_batch(setup)["weights"]
    assert len({float(weights[i::4].sum()) for i in range(4)}) > 1, "the micro-batches must weigh differently"


def test_rows_that_do_not_divide_into_micro_batches_are_refused_by_name():
    with pytest.raises(ShardingError, match=r"8 rows do not divide into training\.micro_batches=3"):
        setup_of(training__micro_batches=3)
    with pytest.raises(ShardingError, match=r"micro-batch of training\.micro_batches=4: 2 rows do not divide over .*mesh\.fsdp=4"):
        setup_of(training__micro_batches=4, mesh__fsdp=4)


def test_a_stream_in_windows_gives_the_losses_of_one_long_row():
    """The law, through the trainer: without updates, windows with a carried state score what the row scores in one piece."""
    still = dict(optimizer__learning_rate=1e-30, optimizer__rule="adamw(weight_decay=0.0)")
    setup = setup_of(**STREAM, **still)
    state, run = training.initialise(setup), training.train_step(setup)
    rows = [host_batch(setup, index) for index in range(3)]
    row = {name: np.concatenate([each[name] for each in rows], axis=1) for name in rows[0]}
    found, _ = step.score(setup, state["params"], row)
    seen = []
    with jax.set_mesh(setup.mesh):
        for index, (spec, batch) in enumerate(input_pipeline.train_batches(setup, 0, 3)):
            np.testing.assert_array_equal(batch["tokens"], rows[index]["tokens"])
            state, numbers = run(state, spec, batch)
            seen.append(float(numbers["loss"]))
    per = [
        (each["weights"] * np.asarray(e)).sum() / each["weights"].sum()
        for each, e in zip(rows, np.split(np.asarray(found.cross_entropy), 3, 1), strict=True)
    ]
    np.testing.assert_allclose(seen, per, rtol=1e-5)
    alone = [step.score(setup, state["params"], each)[0].cross_entropy for each in rows]
    assert abs(float((rows[1]["weights"] * alone[1]).sum() / rows[1]["weights"].sum()) - per[1]) > 1e-4, "the state must matter"


def test_a_stream_refuses_mixers_whose_state_grows():
    with pytest.raises(ValueError, match=r"continue from batch to batch need a state of fixed size.*max_length"):
        setup_of(task="counting(stream=True)", model__layers=("softmax(heads=2)",))


def test_a_skipped_step_changes_neither_parameters_nor_moments_nor_the_carried_state():
    setup = setup_of(**{**STREAM, "task": "counting(stream=True, bad=1)"}, optimizer__skip_limit=2)
    state, run = training.initialise(setup), training.train_step(setup)
    states = []
    with jax.set_mesh(setup.mesh):
        for spec, batch in input_pipeline.train_batches(setup, 0, 3):
            state, _ = run(state, spec, batch)
            states.append(jax.tree.map(np.asarray, {name: state[name] for name in ("params", "carry")}))
    for name in ("params", "carry"):
        jax.tree.map(np.testing.assert_array_equal, states[1][name], states[0][name])
        assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (states[2][name], states[1][name])), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_moving_average_of_the_parameters_follows_its_decay(dtype):
    """In float32 at least: in bfloat16 it would lose most of what a step adds."""
    setup = setup_of(training__ema=0.75, model__param_dtype=dtype)
    state, run = training.initialise(setup), training.train_step(setup)
    with jax.set_mesh(setup.mesh):
        wide = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
        wanted = wide(state["params"])
        for spec, batch in input_pipeline.train_batches(setup, 0, 3):
            state, _ = run(state, spec, batch)
            wanted = jax.tree.map(lambda mean, now: 0.75 * mean + 0.25 * now, wanted, wide(state["params"]))
    # XLA may average parameters before they are rounded to bfloat16.
    assert_close(state["ema"], wanted, tolerance=RELATIVE["float32"] if dtype == "float32" else 1e-3)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state["ema"]))
    jax.tree.map(lambda used, like: used.dtype == like.dtype or pytest.fail(), averaged(state), state["params"])


def test_threads_read_ahead_and_every_process_its_own_rows():
    counting.READERS.clear()
    setup = setup_of(mesh__fsdp=2, mesh__seq=4)
    batches = [(spec, batch) for spec, batch in input_pipeline.train_batches(setup, 2, 5)]
    assert len(batches) == 3 and not any(name == "MainThread" for name in counting.READERS)
    for index, (_, batch) in enumerate(batches, 2):
        for name, array in host_batch(setup, index).items():
            np.testing.assert_array_equal(batch[name], array)
            assert {shard.data.shape for shard in batch[name].addressable_shards} == {(4, 2)}


@pytest.mark.parametrize(
    "values",
    [pytest.param({}, marks=pytest.mark.slow, id="windows"), pytest.param({**STREAM, "training__micro_batches": 2}, id="stream")],
)
def test_a_run_from_files_resumes_bitwise_and_on_other_devices_to_rounding(values, digest, numbers, tmp_path):
    experiment = tiny(**{"task": "counting()", "model__layers": ("gla(heads=2)",), "model__dropout": 0.1, **values})
    training.train(experiment, tmp_path / "whole", console=quiet())
    training.train(stopping(experiment, 3), tmp_path / "cut", console=quiet())
    training.train(experiment, tmp_path / "cut", console=quiet())
    assert digest(experiment, tmp_path / "cut") == digest(experiment, tmp_path / "whole")
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    training.train(stopping(experiment, 3), tmp_path / "other", console=quiet())
    mesh = experiment.mesh.model_copy(update={"fsdp": 2, "seq": 4})
    training.train(experiment, tmp_path / "other", console=quiet(), mesh=mesh)
    for one, other in zip(numbers(tmp_path / "whole"), numbers(tmp_path / "other"), strict=True):
        for key in ("loss", "accuracy", "bits_per_byte"):
            np.testing.assert_allclose(other.get(key, 0), one.get(key, 0), rtol=1e-4)


def test_text_is_evaluated_in_bits_per_byte_and_by_position(tmp_path):
    experiment = tiny(task="counting()", model__layers=("gla(heads=2)",))
    summary = training.train(experiment, tmp_path / "run", console=quiet())
    last = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "eval"][-1]
    assert last["bits_per_byte"] == pytest.approx(last["loss"] / math.log(2) / 2.0)
    assert summary["final"]["length=8"]["bits_per_byte"] == last["bits_per_byte"]
    setup = training.prepare(experiment)
    parameters = training.Checkpoints(tmp_path / "run" / "checkpoints").restore(setup.abstract, print)["params"]
    rows = [setup.task.rows(setup.task.eval_sets()[0].spec, index, slice(0, 8)) for index in range(2)]
    weights = np.concatenate([each["weights"] for each in rows])
    entropy = np.concatenate([step.score(setup, parameters, each)[0].cross_entropy for each in rows])
    for start, stop, loss in zip([0, 1, 2, 4], [1, 2, 4, 8], last["position_loss"]["loss"], strict=True):
        piece = slice(start, stop)
        np.testing.assert_allclose(loss, (weights * entropy)[:, piece].sum() / weights[:, piece].sum(), rtol=1e-5)
    assert last["position_loss"]["from"] == [0, 1, 2, 4]


def test_a_run_is_read_and_continues_a_text_when_its_data_is_gone(tmp_path, monkeypatch, capsys):
    from tokenizers import Tokenizer, models, pre_tokenizers

    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0, **{letter: at for at, letter in enumerate("abcdefgh", 1)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save("letters.json")
    Path("texts").mkdir()
    for number in range(60):
        Path("texts", f"{number}.txt").write_text("abc def gh " * 5)
    data.prepare("texts", "corpus", tokenizer="letters.json", held_out=0.2)
    task = "text(source='corpus', length=8, batch_size=2, positions='document')"
    training.train(tiny(task=task, training__steps=2, model__learned_positions=64), "run", console=quiet())
    before = training.evaluate_run("run")
    capsys.readouterr()
    for gone in ("texts", "corpus"):
        shutil.rmtree(gone)
    assert cli.main(["inspect", "run"]) == cli.main(["plot", "run"]) == 0
    assert training.load_model("run").vocab_size == 9
    assert cli.main(["generate", "run", "--prompt", "abc", "--max-new-tokens", "3", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("a b c")  # the library joins tokens by spaces
    for command in ("eval", "resume"):
        assert cli.main([command, "run"]) == 2
        assert "there is no file or folder 'corpus'" in capsys.readouterr().err
    (tmp_path / "run" / "tokenizer.json").write_text((tmp_path / "letters.json").read_text().replace("abc", "acb") + " ")
    assert cli.main(["generate", "run", "--prompt", "abc"]) == 2
    assert "run/tokenizer.json is not the tokenizer of this folder" in capsys.readouterr().err
    assert before[0] == 2


def test_a_shard_truncated_under_a_run_ends_it_in_one_line_that_says_how_to_continue(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(60):
        Path("texts", f"{number}.txt").write_text("abc def gh " * 9, encoding="utf-8")
    data.prepare("texts", "corpus", held_out=0.2)
    task = "text(source='corpus', length=8, batch_size=2)"
    train, shard = metrics.Metrics.train, Path("corpus/train-00000.tokens.npy")

    def truncating(self, step, **numbers):
        train(self, step, **numbers)
        if step == 30:
            os.truncate(shard, 500)

    training.train(stopping(tiny(task=task, training__steps=90), 1), "run", console=quiet())
    config = Path("run/config.json")
    config.write_text(tiny(task=task, training__steps=90).model_dump_json(), encoding="utf-8")
    monkeypatch.setattr(metrics.Metrics, "train", truncating)
    assert cli.main(["resume", "run"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {shard} was changed while it was read") and said.count("\n") == 1
    assert "the last good checkpoint is" in said and "continue with: train.py resume run" in said


def test_a_run_does_not_resume_with_other_data(tmp_path, monkeypatch):
    experiment = tiny(task="counting()", model__layers=("gla(heads=2)",))
    training.train(stopping(experiment, 2), tmp_path / "run", console=quiet())
    monkeypatch.setattr(counting, "FINGERPRINT", ["sha256:1"])
    with pytest.raises(ValueError, match=r"counting was sha256:0 \(data\.json\) and is sha256:1; wanted the same contents"):
        training.train(experiment, tmp_path / "run", console=quiet())


def test_the_checkpoint_of_the_best_evaluation_is_kept_with_the_latest(tmp_path, monkeypatch):
    bits = iter([1.0, 0.5, 0.7, 0.9, 0.8])  # at steps 2, 4, 6, 8 and 9
    numbers = lambda: {"loss": 1.0, "accuracy": 0.0, "bits_per_byte": next(bits)}
    scripted = lambda setup: lambda parameters, eval_sets, *_, **__: {part.name: numbers() for part in eval_sets}
    monkeypatch.setattr("seqzoo.training.programs.evaluator", scripted)
    values = dict(training__keep=1, training__keep_best=True, training__eval_every=2, training__checkpoint_every=3)
    experiment = tiny(task="counting()", model__layers=("gla(heads=2)",), training__steps=9, **values)
    training.train(stopping(experiment, 7), tmp_path / "run", console=quiet())
    training.train(experiment, tmp_path / "run", console=quiet())
    assert training.Checkpoints(tmp_path / "run" / "checkpoints").steps() == [4, 9]
    assert training.evaluate_run(tmp_path / "run", step=4)[0] == 4
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 8; there are 4, 9"):
        training.evaluate_run(tmp_path / "run", step=8)


def test_a_checkpoint_is_due_by_the_clock_too(tmp_path, monkeypatch):
    hours = iter(range(10**6))
    monkeypatch.setattr("seqzoo.training.loop.time.monotonic", lambda: 3600.0 * next(hours))
    values = dict(training__checkpoint_every=100, training__checkpoint_minutes=30, training__keep=9, training__log_every=2)
    training.train(tiny(**values), tmp_path / "run", console=quiet())
    assert training.Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2, 4, 6]


def test_a_checkpoint_contains_its_config_and_revision(tmp_path):
    experiment = tiny()
    training.train(experiment, tmp_path / "run", console=quiet())
    about = json.loads((tmp_path / "run" / "checkpoints" / "6" / "about.json").read_text())
    assert Experiment(**about["config"]) == experiment and "git" in about


def test_a_run_resumes_with_other_settings_only_with_changed_and_records_them(tmp_path):
    folder = tmp_path / "run"
    training.train(stopping(tiny(), 4), folder, console=quiet())
    longer = tiny(training__steps=8, training__log_every=2)
    with pytest.raises(ValueError, match=r"training\.steps is 6 there, 8 here\); wanted .* or --changed"):
        training.train(longer, folder, console=quiet())
    assert training.train(longer, folder, console=quiet(), changed=True)["step"] == 8
    changed = json.loads((folder / "environment.json").read_text())["resumed"][-1]["changed"]
    assert changed == {"training.steps": [6, 8], "training.stop_after_steps": [4, None], "training.log_every": [1, 2]}
    assert training.load_config(folder) == longer
    training.train(tiny(training__steps=8, training__keep=1), folder, console=quiet())
    assert training.train(tiny(training__steps=10), folder, console=quiet(), changed=True)["step"] == 10, (
        "a finished run continues too"
    )
    with pytest.raises(ValueError, match=r"finished at step 10, and no step .* 10 there, 9 here.; wanted training.steps above 10"):
        training.train(tiny(training__steps=9), folder, console=quiet(), changed=True)
    assert training.load_config(folder) == tiny(training__steps=10)
