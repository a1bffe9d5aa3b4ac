"""Many processes on one comparison: each run is trained once, whoever is killed, and what one finds damaged is said in one line."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from rich.console import Console

from helpers.tiny import TINY, quiet, tiny
from seqzoo import cli, compare, training
from seqzoo.compare import estimate, jobs, runner, shares
from seqzoo.compare.claims import claim
from seqzoo.compare.overall import Overall
from seqzoo.compare.store import FAILURE, open_store
from seqzoo.config import Comparison
from seqzoo.data.lock import is_locked

SEEDS = Comparison(base=tiny(), axes={"training.seed": (0, 1)})
GRID = Comparison(base=tiny(), axes={"model.layers": ("softmax", "gla", "linear"), "training.seed": (0, 1)})


def finish(experiment, folder, *, console=None):
    """Leaves what the trainer leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {"pairs=1": {"accuracy": 0.5, "loss": 1.0, "chance": 0.1, "settings": {"pairs": 1}}}
    summary = {
        "finished": True,
        "ended": "budget",
        "still_learning": False,
        "step": experiment.training.steps,
        "parameters": 1,
        "state_bytes": 1,
    }
    summary |= {"tokens_per_second": 1.0, "final": result, "best": result, "test": {}, "seconds": {"train": 8.0}}
    (folder / "config.json").write_text(experiment.model_dump_json())
    (folder / "metrics.jsonl").write_text('{"step": 6, "kind": "eval", "eval_set": "pairs=1", "accuracy": 0.5, "loss": 1.0}\n')
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


def train_all(folder, train, comparison=SEEDS, retry=False, console=None):
    """The runs after one process has trained them; without tables and figures, which take time."""
    store = open_store(folder, comparison)
    if retry:
        store.retry()
    runner.train_all(store, console or quiet(), train)
    return store.runs()


def killed_with(folder, name, step=-1):
    """A claim as a killed process leaves it: the kernel gives back the lock, and the text stays."""
    held = claim(folder, name, step)
    text = (folder / "claims" / name).read_text()
    held.release()
    (folder / "claims" / name).write_text(text)


def test_the_run_of_a_killed_process_is_taken_over_and_one_that_kills_three_is_not_tried_again(tmp_path):
    folder, console, trained = tmp_path / "c", quiet(), []
    store = open_store(folder, SEEDS)
    first, second = (run.name for run in store.runs())
    killed_with(folder, first)
    for _ in range(3):
        killed_with(folder, second)
    train = lambda experiment, place, **more: trained.append(place.name) or finish(experiment, place)
    runs = train_all(folder, train, console=console)
    assert trained == [first] and f"taking over {first}: process {os.getpid()} on" in console.file.getvalue()
    assert "3 processes in a row were killed" in runs[1].problem
    assert (folder / "runs" / second / FAILURE).read_text().startswith(runs[1].problem)
    assert all(run.finished for run in train_all(folder, train, retry=True))


def test_a_run_that_another_process_has_just_finished_is_not_taken(tmp_path):
    store = open_store(tmp_path / "c", SEEDS)
    stale = store.runs()
    finish(store.experiments[stale[0].name], store.place(stale[0]))
    ((run, held),) = runner._take(store, stale, quiet(), most=1)
    held.release()
    assert run == stale[1]


def test_kills_between_which_a_checkpoint_was_saved_are_not_counted_together(tmp_path):
    for step in (10, 20, 30, 40):
        killed_with(tmp_path, "run", step)
    held = claim(tmp_path, "run", 50)
    held.release()
    assert held.crashes == 1


def test_a_claim_keeps_others_out_until_it_is_given_back(tmp_path):
    held = claim(tmp_path, "run", 0)
    assert claim(tmp_path, "run", 0) is None and is_locked(tmp_path / "claims" / "run")
    held.release()
    assert not is_locked(tmp_path / "claims" / "run")
    again = claim(tmp_path, "run", 0)
    again.release()
    assert again.before == "", "it was given back, not left by a killed process"


def test_a_worker_stays_with_its_programs_then_takes_new_ones_and_helps_others_from_the_end(tmp_path):
    store = open_store(tmp_path / "c", GRID)
    runs = store.runs()
    softmax = store.keys[runs[0].name]
    assert len(set(store.keys.values())) == 3, "runs that differ in the seed alone share programs"
    order = lambda busy, last: [runs.index(run) for run in shares.in_order(runs, store.keys, {runs[n].name for n in busy}, last)]
    assert order((), None) == [0, 1, 2, 3, 4, 5]
    assert order((0,), None) == [2, 3, 4, 5, 1]
    assert order((2, 4), softmax) == [0, 1, 5, 3]


def test_shards_have_every_run_once_and_keep_programs_together_where_that_balances(tmp_path):
    names = [f"{program}{number}" for program in "abcd" for number in range(3)]
    parts = lambda count, names=names, whole=False: [
        shares.shard_of(names, lambda name: name[0], whole, shares.Shard(number, count)) for number in range(1, count + 1)
    ]
    for count in (1, 2, 3, 4, 5, 12, 13):
        assert (
            sorted(name for part in parts(count) for name in part) == names
            and max(map(len, parts(count))) <= -(-12 // count) * 1.25
        )
    assert parts(2)[0] == {name for name in names if name[0] in "ac"}
    assert [len(part) for part in parts(4, names[:3])] == [0, 1, 1, 1] and [len(part) for part in parts(2, names[:3], True)] == [
        3,
        0,
    ]


def test_with_further_seeds_a_shard_has_whole_labels_and_chooses_for_them(tmp_path):
    staged = Comparison(base=tiny(), axes={"model.layers": ("softmax", "gla"), "training.seed": (0, 1)}, seeds_of_best=(2,))
    store = open_store(tmp_path / "c", staged)
    store.take_shard(shares.Shard(2, 2))
    runner.train_all(store, quiet(), finish)
    assert [(run.label, run.seed, run.finished) for run in filter(store.is_mine, store.runs())] == [
        ("gla", 0, True),
        ("gla", 1, True),
        ("gla", 2, True),
    ]


def test_a_shard_trains_its_part_alone_in_the_folder_that_all_share(tmp_path):
    trained = []
    train = lambda experiment, place, **more: trained.append(place.name) or finish(experiment, place)
    for number, done in ((2, 2), (1, 4), (3, 6)):
        compare.run(GRID, tmp_path / "c", console=(console := quiet()), run=train, shard=shares.Shard(number, 3))
        assert len(trained) == done and f"shard {number}/3: 2 of 6 runs" in console.file.getvalue()
        assert (f"other shards without a result yet: {6 - done}" in console.file.getvalue()) == (done < 6)
    results = json.loads((tmp_path / "c" / "results.json").read_text())
    assert all(run["finished"] for run in results["runs"]) and len(set(trained)) == 6


def test_a_folder_of_another_version_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "c"
    train_all(folder, finish)
    for found, says in (('{"format": 7}', "format 7; wanted format"), (None, "an earlier version wrote it")):
        (folder / "store.json").write_text(found) if found else (folder / "store.json").unlink()
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(ValueError, match=says):
            train_all(folder, finish)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_damaged_result_has_its_reason_in_failure_txt_and_retry_sets_it_aside(tmp_path):
    folder = tmp_path / "c"
    name = train_all(folder, finish)[0].name
    (folder / "runs" / name / "summary.json").write_text("[]")
    problem = train_all(folder, finish)[0].problem
    assert "summary.json is damaged" in problem and problem in (folder / "runs" / name / FAILURE).read_text()
    assert all(run.finished for run in train_all(folder, finish, retry=True))
    assert (folder / "runs" / f"{name}.failed1" / "summary.json").read_text() == "[]"


def test_a_run_whose_checkpoints_do_not_load_is_set_aside_by_retry(tmp_path):
    folder = tmp_path / "c"

    def unreadable(experiment, place, **_):
        (place / "checkpoints" / "2").mkdir(parents=True)
        (place / "config.json").write_text(experiment.model_dump_json())
        raise training.CheckpointError("no checkpoint loads")

    name = train_all(folder, unreadable)[0].name
    assert all(run.finished for run in train_all(folder, finish, retry=True))
    assert (folder / "runs" / f"{name}.failed1" / "checkpoints" / "2").is_dir()


def test_exactly_the_runs_that_are_still_learning_get_a_longer_budget_which_stays(tmp_path):
    folder, trained = tmp_path / "c", []

    def train(experiment, place, *, console=None, changed=False):
        trained.append((place.name[:1], experiment.training.steps, changed))
        summary = finish(experiment, place)
        learning = experiment.training.seed == 1 and experiment.training.steps < 20
        (place / "summary.json").write_text(json.dumps(summary | {"still_learning": learning}))

    go = lambda **more: compare.run(SEEDS, folder, console=quiet(), run=train, **more)
    go()
    with pytest.raises(ValueError, match=r"--steps 6, but 1-.* has done 6; wanted more steps"):
        go(continue_unfinished=True, steps=6)
    go(continue_unfinished=True, steps=18)
    results = go(continue_unfinished=True)
    assert trained == [("0", 6, False), ("1", 6, False), ("1", 18, True), ("1", 36, True)]
    assert [run["more_steps"] for run in results["runs"]] == [None, 36] and results["runs"][1]["config"]["training"]["steps"] == 36
    go()
    assert len(trained) == 4, "a call without it does not undo it"
    assert f"to 36 steps: `{results['runs'][1]['name']}`" in (folder / "report.md").read_text()


def test_the_overall_line_fits_sixty_columns_and_tells_the_time_left(tmp_path):
    store = open_store(tmp_path / "c", GRID)
    runs = store.runs()
    finish(store.experiments[runs[0].name], store.place(runs[0]))
    line = Overall(quiet(), store.keys)
    line.update(store.runs(), {runs[1].name})
    assert line.line() == "1 of 6 runs done, 1 running, about 0:00:36 left", "4.5 runs of 8 seconds"
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    with Overall(console, store.keys) as line:
        line.update(store.runs(), {runs[1].name, runs[2].name})
        time.sleep(0.3)
    shown = re.split(r"\x1b\[[^a-zA-Z]*[a-zA-Z]|[\r\n]", console.file.getvalue())
    assert any(re.fullmatch(r"1 of 6 runs done, 2 running, about 0:00:\d\d left", each.strip()) for each in shown), shown


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 7}, raising=False)
    assert jobs.shares(2) == [[0, 1], [2, 3, 7]]
    assert [len(each) for each in jobs.shares(7)] == [1] * 7


def test_flags_of_comparisons_are_refused_in_one_line_where_they_do_not_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.py").write_text(f"from seqzoo.config import *\nconfig = replace(Experiment(), {TINY!r})\n")
    for words, says in (
        (["one.py", "--jobs", "2"], "this config is one run; --jobs is for comparisons"),
        (["compare", "one.py"], "compare is for comparisons"),
        (["compare"], "compare needs a config file or a folder"),
        (["one.py", "--jobs", "0"], "--jobs is '0'; wanted a number of processes"),
        (["--jobs", "many"], "--jobs is 'many'; wanted a number of processes"),
        (["--shard", "0/4"], "--shard is '0/4'; wanted i/n with i from 1 to n"),
        (["--shard", "5/4"], "--shard is '5/4'; wanted i/n"),
        (["one.py", "--shard", "1/2"], "this config is one run; --shard is for comparisons"),
        (["--continue-unfinished"], "a new comparison has no earlier runs; wanted --continue-unfinished with"),
        (["--steps", "9"], "--steps is the longer budget of --continue-unfinished"),
        (["--continue-unfinished", "--training.steps", "no"], "--steps is 'no'; wanted a number of steps"),
        (["--estimate"], "--estimate is a part of the dry run; wanted --dry-run --estimate"),
        (["--retry"], "a new comparison has no earlier runs; wanted --retry with"),
    ):
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1, (words, said)
    assert [path.name for path in tmp_path.iterdir()] == ["one.py"]


def test_the_estimate_times_each_program_once_and_counts_compilation_once_and_later_seeds(monkeypatch):
    """6 steps of 10 s and 2 evaluations of 5 s: 70 s a run; three of softmax with one start of 30 s, 240 s."""
    timed = []
    monkeypatch.setattr(estimate, "time_steps", lambda each: timed.append(each) or estimate.Timing(30.0, 10.0, 5.0))
    staged = Comparison(base=tiny(), axes={"model.layers": ("softmax", "gla"), "training.seed": (0, 1)}, seeds_of_best=(2,))
    compare.show(staged, console := quiet())
    assert "A second stage adds 2 runs: seeds 2 at the best settings of each label." in console.file.getvalue()
    compare.show_estimate(staged, console := quiet())
    shown = console.file.getvalue()
    assert len(timed) == 2 and "timing 2 of 2: gla" in shown and "0:04:00" in shown and "About 0:08:00 in all" in shown, shown
    assert "0:01:10" in shown, "one run"


@pytest.mark.slow
def test_the_time_of_a_step_is_positive_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = estimate.time_steps(tiny(training__stop_above=0.5, optimizer__schedule="cosine(warmup_steps=4)"))
    assert 0 < found.step < found.start and found.evaluation > 0 and not list(tmp_path.iterdir())


def comparison_file(path, steps):
    base = TINY | {"training.steps": steps, "training.checkpoint_every": 50, "training.eval_every": 100, "training.log_every": 50}
    axes = {"model.layers": ("softmax(heads=2)", "linear(heads=2)"), "training.seed": (0, 1)}
    path.write_text(f"from seqzoo.config import *\nconfig = Comparison(base=replace(Experiment(), {base!r}), axes={axes!r})\n")
    return path


def start(tmp_path, *words):
    command = [sys.executable, "-c", "from seqzoo.cli import main; raise SystemExit(main())", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def numbers(results):
    """The last evaluations of all runs: they do not depend on time."""
    return {run["name"]: (run["finished"], run["summary"].get("final"), run["summary"].get("test")) for run in results["runs"]}


def holders(folder):
    """The processes that train a run now, with a checkpoint of it on disk, by run."""
    found = {}
    for path in folder.glob("claims/*"):
        checkpoints = [each.name for each in (folder / "runs" / path.name / "checkpoints").glob("*")]
        if is_locked(path) and any(map(str.isdecimal, checkpoints)) and (text := path.read_text()):
            found[path.name] = json.loads(text)["process"]
    return found


def wait_for(what, seconds=180):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_a_killed_worker_is_reported_its_run_is_taken_over_and_the_results_are_those_of_one_process(tmp_path):
    file = comparison_file(tmp_path / "c.py", 300)
    alone, together = (
        start(tmp_path, "compare", file, "--run.name", "alone"),
        start(tmp_path, file, "--run.name", "t", "--jobs", "2"),
    )
    name, process = next(iter(wait_for(lambda: holders(tmp_path / "runs" / "t")).items()))
    os.kill(process, signal.SIGKILL)
    said, _ = together.communicate(timeout=300)
    alone.communicate(timeout=300)
    assert alone.returncode == 0 and together.returncode == 0, said
    assert f"process {process}, ended by SIGKILL; {name} is taken over" in said and said.count("SIGKILL") == 1, said
    results = [json.loads((tmp_path / "runs" / each / "results.json").read_text()) for each in ("alone", "t")]
    assert numbers(results[0]) == numbers(results[1]) and all(run["finished"] for run in results[1]["runs"])


@pytest.mark.slow
def test_a_signal_to_the_parent_stops_all_workers_after_they_saved(tmp_path):
    together = start(tmp_path, comparison_file(tmp_path / "c.py", 20_000), "--run.name", "t", "--jobs", "2")
    found = wait_for(lambda: len(h := holders(tmp_path / "runs" / "t")) == 2 and h)
    together.send_signal(signal.SIGTERM)
    said, _ = together.communicate(timeout=100)
    assert together.returncode == 128 + signal.SIGTERM and said.count("saved ") == 2 and "resume runs/t --jobs 2" in said, said
    assert not holders(tmp_path / "runs" / "t") and all(
        (tmp_path / "runs" / "t" / "claims" / name).read_text() == "" for name in found
    )


@pytest.mark.slow
def test_of_two_shards_one_is_killed_and_started_again_and_the_results_are_those_of_one_process(tmp_path):
    file = comparison_file(tmp_path / "c.py", 300)
    first, second = (start(tmp_path, file, "--run.name", "t", "--shard", f"{number}/2") for number in (1, 2))
    wait_for(lambda: second.pid in holders(tmp_path / "runs" / "t").values())
    second.kill()
    second.communicate()
    assert "shard 1/2: 2 of 4 runs" in first.communicate(timeout=300)[0] and first.returncode == 0
    again, alone = start(tmp_path, file, "--run.name", "t", "--shard", "2/2"), start(tmp_path, file, "--run.name", "alone")
    said = again.communicate(timeout=300)[0]
    alone.communicate(timeout=300)
    assert again.returncode == alone.returncode == 0 and f"process {second.pid} on " in said and "resuming" in said, said
    results = [json.loads((tmp_path / "runs" / each / "results.json").read_text()) for each in ("alone", "t")]
    assert numbers(results[0]) == numbers(results[1]) and all(run["finished"] for run in results[1]["runs"])


@pytest.mark.slow
def test_a_run_that_was_still_learning_is_continued_from_its_checkpoint(tmp_path):
    one = Comparison(base=tiny(), axes={"training.seed": (0,)})
    compare.run(one, tmp_path / "c", console=quiet())
    compare.run(one, tmp_path / "c", console=(console := quiet()), continue_unfinished=True, steps=9)
    (run,) = json.loads((tmp_path / "c" / "results.json").read_text())["runs"]
    assert run["summary"]["step"] == 9 and "at step 6" in console.file.getvalue() and not run["problem"]
