"""Any damage to any file of a run: every command ends with a line that names it, or gives the numbers of the undamaged run."""

import json
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from helpers import tiers
from helpers.tiny import quiet, stopping, tiny
from seqzoo import training
from seqzoo.cli import main
from seqzoo.model import params

TEXT = "text(source='texts', length=8, batch_size=2)"


def flipped(data, seed):
    """The bytes with one bit changed."""
    changed, chosen = bytearray(data), random.Random(seed)
    if changed:
        changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
    return bytes(changed)


DAMAGES = {
    "removed": None,
    "empty": lambda data: b"",
    "truncated": lambda data: data[: 2 * len(data) // 3],
    "one bit": lambda data: flipped(data, 1),
    "another bit": lambda data: flipped(data, 2),
    "appended": lambda data: data + b"\x00{}\n",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with texts and a run on them that was stopped at step 4 of 6, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("texts").mkdir()
        for number in range(60):
            Path("texts", f"{number}.txt").write_text("abc def gh " * 3, encoding="utf-8")
        experiment = tiny(task=TEXT, training__keep=2, training__eval_every=2)
        training.train(stopping(experiment, 4), "run", console=quiet())
        Path("run/config.json").write_text(experiment.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return folder


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def numbers(folder):
    """The numbers of a finished run: losses by step, and the digest of the last parameters."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {(line["kind"], line["step"], line.get("eval_set")): line["loss"] for line in lines}
    _, parameters = params.split(training.load_model(folder))
    return losses, [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(nnx.to_pure_dict(parameters))]


def outcome(capsys, *words):
    """(exit code, standard output, standard error) of a command."""
    capsys.readouterr()
    code = main(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


@tiers.thirds
def test_any_damage_to_any_file_is_named_or_changes_no_number(work, tmp_path, monkeypatch, capsys, third):
    """Each third has every file, with a third of the damages."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(work / "texts", "texts")

    def copy():
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(work / "run", "run")
        return Path("run")

    reading = (("inspect", "run"), ("eval", "run"), ("generate", "run", "--prompt", "ab", "--temperature", "0"))
    run = copy()
    wanted = {words: outcome(capsys, *words) for words in reading}
    assert outcome(capsys, "resume", "run")[0] == 0
    wanted_numbers, problems, cases = numbers(run), [], 0
    for number, name in enumerate(files(work / "run")):
        for label, damage in list(DAMAGES.items())[(number + third) % 3 :: 3]:
            run, cases = copy(), cases + 1
            path = run / name
            path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
            where = f"{name}, {label}"
            names = (name, "/".join(name.split("/")[:2]))
            for words in (*(reading[:2] if "checkpoints/" in name else reading), ("resume", "run")):
                try:
                    code, out, err = outcome(capsys, *words)
                except BaseException as error:
                    problems.append(f"{where}: {words[0]}: {type(error).__name__}: {error}")
                    continue
                if code not in (0, 1, 2):
                    problems.append(f"{where}: {words[0]} ends with {code}")
                elif code and (err.count("\n") != 1 or not any(each in err for each in (*names, "run has no checkpoint"))):
                    problems.append(f"{where}: {words[0]} says {err[:300]!r}")
                elif not code and words in wanted and words[0] != "inspect" and out != wanted[words][1]:
                    if not any(each in out for each in names):
                        problems.append(f"{where}: {words[0]} prints other numbers: {out[:300]!r}")
                elif not code and words[0] == "resume" and numbers(run) != wanted_numbers:
                    problems.append(f"{where}: resume ends with other numbers: {out[-500:]!r}")
    print(cases, "damaged runs")
    assert not problems, "\n".join(problems)
