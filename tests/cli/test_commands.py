"""The command line: the runs it starts, and the arguments it refuses without writing anything."""

import json

import jax
import pytest

from helpers.tiny import TINY, tiny
from seqzoo import cli, compare, config, data, mixers, tasks, training
from seqzoo.cli import quickstart
from seqzoo.cli.refusals import in_one_line
from seqzoo.config import Comparison, Experiment
from seqzoo.config.names import shortened
from seqzoo.model import memory
from seqzoo.training import memory as training_memory
from seqzoo.training.run import distributed, profiling


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Runs the command line in an empty folder without training: ran(*words) -> [(config, folder name)]."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def record(chosen, folder, **_):
        calls.append((chosen, folder.name))
        return {}

    monkeypatch.setattr(training, "train", record)
    monkeypatch.setattr(compare, "run", record)

    def run(*words):
        code = cli.main([str(word) for word in words])
        return calls if code == 0 else code

    return run


@pytest.fixture
def file(tmp_path):
    """A config file of the tiny experiment."""
    path = tmp_path / "my.py"
    path.write_text(f"from seqzoo.config import Experiment, replace\nconfig = replace(Experiment(), {TINY!r})\n")
    return path


@pytest.fixture
def comparison(tmp_path):
    """A config file of a comparison."""
    path = tmp_path / "two.py"
    path.write_text(
        f"from seqzoo.config import *\nbase = replace(Experiment(), {TINY!r})\n"
        "config = Comparison(base=base, axes={'model.layers': ('softmax', 'linear')})\n"
    )
    return path


def test_a_config_file_is_run_with_the_settings_of_the_command_line(ran, file):
    words = (file, "--model.layers", "gla(heads=2)", "--optimizer.learning-rate", "3e-3", "--run.name", "mine")
    assert ran(*words) == [(tiny(model__layers=("gla(heads=2)",), optimizer__learning_rate=3e-3, run__name="mine"), "mine")]


def test_the_command_train_is_optional(ran, file):
    assert ran("train", file) == [(tiny(), "mqar-softmax")]


def test_a_sweep_is_the_comparison_of_all_combinations(ran, file, comparison):
    sweeps = ("--sweep", "optimizer.learning-rate=1e-3,3e-3", "--sweep=model.layers=gla(heads=1, expand_v=2), softmax")
    (chosen, _), *_ = ran(file, *sweeps, "--model.depth", 2)
    axes = {"optimizer.learning_rate": (1e-3, 3e-3), "model.layers": (("gla(heads=1, expand_v=2)",), ("softmax",))}
    assert chosen == Comparison(base=tiny(model__depth=2), axes=axes)
    _, (chosen, _) = ran(comparison, "--sweep", "training.ema=None,0.9")
    assert chosen.axes == {"model.layers": ("softmax", "linear"), "training.ema": (None, 0.9)}


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("model.layers=linear,('retnet','softmax')", (("linear",), ("retnet", "softmax"))),
        ("model.layers=linear,'retnet, softmax(window=4)'", (("linear",), ("retnet", "softmax(window=4)"))),
        ("model.norm_position=pre,['post']", ("pre", ("post",))),
        ("mesh.rules={'heads': None},{}", ({**tiny().mesh.rules, "heads": None}, tiny().mesh.rules)),
        ("run.log=(),('tensorboard',)", ((), ("tensorboard",))),
        ("optimizer.accumulate_steps='0:1, 2:2',2", ("0:1, 2:2", "2")),
        ("run.name='a, b',c", ("a, b", "c")),
        ("training.ema=None,0.5", (None, 0.5)),
    ],
)
def test_values_in_quotes_or_brackets_are_swept_as_python_writes_them(ran, file, capsys, word, values):
    (chosen, _), *_ = ran(file, "--sweep", word)
    assert chosen.axes == {word.split("=")[0]: values}
    assert ran(file, "--sweep", word, "--dry-run")
    assert f"Runs: {len(values)}," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "kept", "says"),
    [
        (("--sweep", "training.seed=1,0x1,2,+1"), {"training.seed": (1, 2)}, "training.seed=1 is the same as 1: one run for both"),
        (("--sweep", "optimizer.learning_rate=1e-3,0.001"), {"optimizer.learning_rate": (1e-3,)}, "0.001 is the same as 0.001"),
        (("--sweep", "model.layers=gla(heads=2),gla( heads = 2 )"), {"model.layers": (("gla(heads=2)",),)}, "one run for both"),
    ],
)
def test_equal_values_of_a_sweep_are_one_run(ran, file, capsys, words, kept, says):
    (chosen, _), *_ = ran(file, *words)
    assert chosen.axes == kept and says in capsys.readouterr().out


def test_equal_values_of_a_files_axis_are_one_run(ran, comparison, capsys):
    (chosen, _), *_ = ran(comparison, "--axes", "{'model.layers': ('softmax', ('softmax',)), 'x': {'a': {'training.seed': 1}}}")
    assert chosen.axes["model.layers"] == ("softmax",) and "one run for both" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0b", "a\nb", "-rf", "a" * 256, "\u00e9" * 130, "\udcff"])
def test_a_name_that_is_no_safe_folder_is_refused(ran, file, capsys, name):
    assert ran(file, f"--run.name={name}") == 2
    said = capsys.readouterr().err
    assert "wanted" in said and said.count("\n") == 1


def test_names_made_from_long_specs_are_shortened_and_differ():
    names = mixers.registry.names()
    long = [tiny(model__layers=layers).name for layers in (names, (*names[1:], names[0]))]
    assert all(len(each.encode()) <= 240 for each in long) and len(set(long)) == 2
    assert tiny().name == "mqar-softmax" and shortened("\u00e9" * 100, 20).encode()[-9:-8] == b"-"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("optimizer.learning_rate",), "wanted SETTING=VALUE,VALUE"),
        (("optimizer.leaning_rate=1,2",), "Did you mean 'optimizer.learning_rate'"),
        (("model.depth=1,two",), "found 'two'"),
        (("training.seed=1,2", "--training.seed", "3"), "training.seed is given twice"),
        (("training.seed=1,2", "--sweep", "training.seed=3"), "training.seed is given twice"),
    ],
)
def test_a_sweep_without_a_known_setting_or_a_value_is_refused(ran, file, capsys, words, message):
    assert ran(file, "--sweep", *words) == 2
    assert message in capsys.readouterr().err


def test_layers_split_at_top_level_commas(ran, file):
    (chosen, _), *_ = ran(file, "--model.layers", "gla, softmax(window=4, heads=2)")
    assert chosen.model.layers == ("gla", "softmax(window=4, heads=2)")


def test_single_mesh_rules_are_replaced(ran, file):
    (chosen, _), *_ = ran(file, "--mesh.rules", "{'heads': 'fsdp', 'embed': None}")
    assert chosen.mesh.rules == {**tiny().mesh.rules, "heads": "fsdp", "embed": None}


def test_the_task_is_a_setting_too(ran, file):
    (chosen, _), *_ = ran(file, "--task", "mqar(vocab_size=64, length=32, pairs=3, batch_size=8)")
    assert chosen.task == "mqar(vocab_size=64, length=32, pairs=3, batch_size=8)"


def test_without_arguments_the_quickstart_runs_from_anywhere(ran):
    assert ran("--mesh.fsdp", "1") == [
        (quickstart.config.model_copy(update={"base": config.replace(quickstart.config.base, {"mesh.fsdp": 1})}), "mqar-comparison")
    ]


def test_a_comparison_takes_the_settings_of_its_base_and_its_axes(ran, comparison):
    (chosen, _), *_ = ran(comparison, "--training.steps", "9", "--axes", "{'training.seed': (0, 1), 'model.depth': (1, 2)}")
    assert isinstance(chosen, Comparison) and chosen.base.training.steps == 9
    assert chosen.axes == {"training.seed": (0, 1), "model.depth": (1, 2)}


def test_two_runs_get_two_folders(ran, file):
    ran(file)
    assert [name for _, name in ran(file)] == ["mqar-softmax", "mqar-softmax-2"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model.layers", "sofmax"), "Did you mean 'softmax'?"),
        (("--model.layers", "softmax(head=2)"), "Did you mean 'heads'?"),
        (("--model.layers", "gla,,softmax"), "'gla,,softmax' has nothing between two commas"),
        (("--task", "mqar(pair=2)"), "Did you mean 'pairs'?"),
        (("--model.layer", "softmax"), "--model.layers"),
        (("--model.norm", "batch"), "rms"),
        (("--model.d-model", "wide"), "wide"),
        (("--model.d-model", "0"), "greater than or equal to 1"),
        (("--model.layers", "softmax(heads=3)"), "heads=3 does not divide d_model=16"),
        (("--mesh.replica", "3", "--mesh.fsdp", "-1"), "3 does not divide 8"),
        (("--mesh.replica", "8", "--task", "mqar(vocab_size=32, length=16, pairs=2, batch_size=6)"), "6 rows do not divide"),
        (("nonsense",), "nonsense"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_nearest_name_and_nothing_is_written(ran, file, capsys, words, says):
    code, said = ran(file, *words), capsys.readouterr().err
    assert code == 2 and says in said and said.count("\n") == 1, said
    assert not (file.parent / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("evl", "runs/a"), "'evl' is neither a command nor a config file. Did you mean 'eval'?"),
        (("configs/none.py",), "there is no config file configs/none.py"),
        (("README.md",), "a config file ends in .py"),
        (("eval",), "eval needs a run folder"),
        (("eval", "runs/none"), "runs/none is not a run folder"),
        (("resume", "runs/none"), "runs/none is not a run folder"),
        (("--distributed", "here"), "--distributed is 'here'; wanted off, auto, or ADDRESS:PORT/COUNT/INDEX"),
        (("--distributed=10.0.0.1:1234/2/2",), "with INDEX from 0 to COUNT - 1"),
        (("--distributed=127.0.0.1:65536/2/0",), "with a PORT from 1 to 65535, found '65536'"),
        (("--distributed-timeout", "5"), "--distributed-timeout 5 is for several processes; wanted --distributed with it"),
        (("--distributed=10.0.0.1:1/2/0", "--distributed-timeout=0"), "is '0'; wanted a number of seconds from 1 to 1000000"),
        (("--compilation-cache",), "--compilation-cache has no value; wanted a folder after it"),
    ],
)
def test_a_wrong_first_argument_is_reported(ran, capsys, words, says):
    assert ran(*words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\nimport nosuch\n", "mine.py, line 2: ModuleNotFoundError: No module named 'nosuch'"),
        ("def f(\n", "mine.py, line 1: SyntaxError: '(' was never closed"),
        ("config = 3\n", "mine.py defines config=3"),
    ],
)
def test_a_config_file_that_cannot_be_run_is_reported_with_its_line(ran, tmp_path, capsys, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert ran(path) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_setting_that_is_an_axis_cannot_be_overridden(ran, comparison, capsys):
    assert ran(comparison, "--model.layers", "gla") == 2
    assert "model.layers is an axis of this comparison" in capsys.readouterr().err


@pytest.mark.parametrize("frames", [True, False])
def test_the_parsers_boxes_become_lines(frames):
    rows = [
        "Error parsing --model.depth: no type",
        "matching INT: 'x'.",
        "─" * 40,
        "Argument helptext:",
        "    --model.depth INT",
        "─" * 40,
    ]
    box = "\n".join(["╭─ Value error ─╮", *(f"│ {row} │" for row in rows), "╰───╯"] if frames else ["Value error", "-" * 40, *rows])
    assert in_one_line(box, ["my.py", "--model.depth", "x"]) == "--model.depth is 'x'; wanted a whole number"
    assert in_one_line(box, ["--model.depth=x"]) == "--model.depth is 'x'; wanted a whole number"


@pytest.mark.parametrize("kind", ["file", "comparison"])
def test_help_explains_every_setting(ran, request, kind, capsys):
    with pytest.raises(SystemExit) as stopped:
        ran(request.getfixturevalue(kind), "--help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stopped.value.code == 0 and "eval RUN" in shown
    for path in config.settings(Experiment()):
        assert f"--{path.replace('_', '-')} " in shown
    for section in (config.Model, config.Optimizer, config.Training):
        for field in section.model_fields.values():
            assert " ".join(field.description.split())[:30] in shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (training.Interrupted(15, 3), 143),
        (training.Interrupted(2, 3), 130),
        (training.Diverged("step 3"), 1),
        (training.WriteError("cannot write"), 1),
    ],
)
def test_each_end_of_a_run_has_its_exit_code(ran, file, monkeypatch, error, code):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(training, "train", fail)
    assert ran(file) == code


def test_a_folder_that_cannot_be_written_is_reported(file, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(file), "--run.folder", str(file)]) == 1
    assert f"error: cannot write {file}" in capsys.readouterr().err


HUGE = "mqar(vocab_size=32, length=16, pairs=2, batch_size=2147483640, eval_pairs=(1, 2), eval_examples=16)"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model.depth", "1000000000"), "less than or equal to 4096"),
        (("--training.steps", "1000000000000"), "less than 2147483648"),
        (("--model.d-model", "65536"), "training state needs 206.2 GB"),
        (("--model.learned-positions", "2147483647"), "training state needs 412.3 GB"),
        (("--task", "mqar(vocab_size=2147483646, length=16, pairs=2)"), "training state needs 412.3 GB"),
        (("--task", HUGE), "a batch of 2,147,483,640 rows of 16 tokens needs at least 4.8 TB"),
    ],
)
def test_a_run_that_no_device_can_hold_is_refused_before_there_is_a_folder(ran, file, tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.setattr(training_memory, "device_memory", lambda devices: 64 * 10**9)
    assert ran(file, *words) == 2
    said = capsys.readouterr().err
    assert says in said and ("64.0 GB" in said) == ("needs" in says)
    assert said.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_the_memory_of_this_machine_is_shared_by_its_devices():
    one, all_ = memory.device_memory(jax.devices()[:1]), memory.device_memory(jax.devices())
    assert one and all_ and one // len(jax.devices()) == all_ > 2**26


def test_the_longest_run_is_listed_at_once(ran, file, capsys):
    assert ran(file, "--training.steps", 2**31 - 1, "--dry-run") == []
    assert f"{(2**31 - 1) * 8 * 16:,}" in capsys.readouterr().out


def test_a_folder_of_programs_comes_from_the_command_line_never_from_a_run_folder(file, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    used = []
    monkeypatch.setattr(profiling, "enable_compilation_cache", used.append)
    monkeypatch.setattr(training, "train", lambda *_, **__: {})
    assert cli.main([str(file), "--compilation-cache", "programs"]) == 0 and used == ["programs"]
    folder = training.create_run_dir("runs", "theirs")
    theirs = tiny().model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps(theirs | {"run": theirs["run"] | {"compilation_cache": "runs/theirs/programs"}}))
    assert cli.main(["resume", str(folder)]) == 2 and used == ["programs"]
    assert "has no setting 'compilation_cache'" in capsys.readouterr().err


def test_a_comparison_in_several_processes_is_refused(ran, comparison, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: True)
    assert ran(comparison) == 2
    assert "a comparison runs in one process" in capsys.readouterr().err


def test_a_run_is_resumed_on_other_devices_and_with_other_settings_if_changed_is_given(file, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    folder = training.create_run_dir("runs", "mine")
    (folder / "config.json").write_text(tiny().model_dump_json())
    calls = []
    monkeypatch.setattr(training, "train", lambda chosen, folder, *, mesh, **_: calls.append((chosen, folder, mesh)))
    assert cli.main(["resume", "runs/mine", "--mesh.fsdp", "4", "--mesh.replica", "2"]) == 0
    assert calls == [(tiny(), folder, config.Mesh(fsdp=4, replica=2))]
    assert cli.main(["resume", "runs/mine", "--mesh.replica", "3"]) == 2
    assert cli.main(["resume", "runs/mine", "--mesh.fsdp", "4", "--training.steps", "3"]) == 2
    shown = capsys.readouterr().err
    assert "do not divide" in shown and "training.steps is 6 there, 3 here" in shown and "--changed" in shown and len(calls) == 1
    assert cli.main(["resume", "runs/mine", "--training.log-every", "3"]) == 0, "which changes no number"
    assert cli.main(["resume", "runs/mine", "--training.steps", "3", "--changed"]) == 0
    assert [chosen.training.steps for chosen, _, _ in calls] == [6, 6, 3]


def test_runs_that_failed_are_tried_again_in_comparisons_only(ran, monkeypatch, tmp_path, capsys):
    for name, held in {"one": tiny(), "two": Comparison(base=tiny(), axes={"training.seed": (0, 1)})}.items():
        folder = training.create_run_dir("runs", name)
        (folder / "config.json").write_text(held.model_dump_json())
    tried = []
    monkeypatch.setattr(compare, "run", lambda *_, retry, **__: tried.append(retry) or {"runs": []})
    assert ran("resume", "runs/one", "--retry") == 2
    assert "runs/one holds one run; --retry is for comparisons" in capsys.readouterr().err
    assert ran("resume", "runs/two", "--retry") == ran("resume", "runs/two") == [] and tried == [True, False]


def test_a_run_is_trained_resumed_and_evaluated(file, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    short = ("--training.steps", "2")
    assert cli.main([str(file), *short, "--training.stop-after-steps", "1"]) == 0
    assert "saved runs/mqar-softmax at step 1; continue with: train.py resume runs/mqar-softmax" in capsys.readouterr().out
    assert cli.main(["resume", "runs/mqar-softmax"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", "runs/mqar-softmax"]) == 0
    table = capsys.readouterr().out
    assert "runs/mqar-softmax at step 2" in table and "pairs=1" in table and "chance" in table and "0.062" in table
    assert cli.main(["resume", "runs/mqar-softmax", "--training.steps", "3"]) == 2


REFUSED = {
    "a corpus smaller than one batch": ("text(source='small', length=512, held_out=0)", (), "wanted smaller ones, or more text"),
    "an evaluation set without bytes": (
        "text(source='empty', length=4, batch_size=1)",
        (),
        "of the split held_out of empty are empty",
    ),
    "no source": ("text(source='smal')", (), "there is no file or folder 'smal'. Did you mean 'small'?"),
    "a run inside its source": (
        "text(source='small', length=4, batch_size=1)",
        ("--run.folder", "small/runs"),
        "is inside the data",
    ),
    "nothing to rank by": (
        "text(source='small', length=4, batch_size=1, held_out=0)",
        ("--sweep", "optimizer.learning_rate=1e-3,3e-3"),
        "evaluates nothing to rank by",
    ),
}


@pytest.mark.parametrize(("task", "words", "says"), REFUSED.values(), ids=list(REFUSED))
def test_data_that_does_not_fit_is_refused_before_there_is_a_folder(ran, file, tmp_path, capsys, task, words, says):
    for folder, held_out in (("small", "some words"), ("empty", "")):
        (tmp_path / folder).mkdir()
        for number in range(60):
            name = f"{number}.txt"
            split = data.sources.Document(data.sources.File(tmp_path, name, name, True), None, b"", 0).split(0.05)
            (tmp_path / folder / name).write_text("some words" if split == "train" else held_out)
    before = sorted(tmp_path.rglob("*"))
    assert ran(file, "--task", task, *words) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1, said
    assert sorted(tmp_path.rglob("*")) == before


def test_prepare_writes_shards_that_the_task_reads_and_reports_their_number(ran, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for number in range(50):
        (tmp_path / "texts" / f"{number}.txt").write_text("some text")
    (tmp_path / "texts" / "[b]").write_bytes(b"\0")
    assert ran("prepare", "texts", "out", "--held-out", "0.2", "--shard-tokens", "100") == []
    said = capsys.readouterr().out
    assert "out, from texts" in said and "train" in said and "held_out" in said and "binary files skipped: 1" in said
    assert tasks.create("text(source='out', length=8)").describe()["train"]["documents"] > 30
    assert ran("prepare", "texts", "out", "--held-out", "0.1") == 2
    assert "held_out is 0.2 there, 0.1 here; shard_tokens is 100 there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "prepare needs a source and a new folder: train.py prepare stdlib corpora/stdlib"),
        (("stdlib",), "prepare needs a source and a new folder"),
        (("nothing", "out"), "there is no file or folder 'nothing'"),
        (("stdlib", "out", "--tokenizer", "bites"), "there is no tokenizer bites"),
    ],
)
def test_prepare_refuses_wrong_arguments_and_writes_nothing(ran, tmp_path, capsys, words, says):
    assert ran("prepare", *words) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_prepare_stopped_from_the_keyboard_prints_the_command_that_continues(ran, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "prepare", stopped)
    assert ran("prepare", "stdlib", "out") == 130
    assert "train.py prepare stdlib out" in capsys.readouterr().err
