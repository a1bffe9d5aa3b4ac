"""The command line: `train.py [COMMAND | CONFIG.py] [--settings]`, installed as `seqzoo`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from seqzoo import config
from seqzoo.registry import did_you_mean

QUICKSTART = Path("configs/quickstart.py")

USAGE = """train.py [COMMAND | CONFIG.py] [--settings]

- train.py: train the quickstart comparison
- train.py CONFIG.py: train what the file's `config` describes
- train.py train [CONFIG.py]: the same, in full
- train.py resume RUN: go on with a run folder that was stopped
- train.py eval RUN: evaluate a run's latest checkpoint and print its slices

Any setting can be changed: --model.layers "mamba2, softmax(window=256, heads=2)" --optimizer.learning-rate 3e-3.
Below are those of the chosen config, with its values.
"""

_FLAGS = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)


class Evaluation(config.Section):
    """Settings of `eval`: the devices need not be those of the training."""

    mesh: config.Mesh
    """Which devices do what."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (`sys.argv` by default) and returns the exit code.

    0: done. 1: the run diverged, or no checkpoint loads. 2: a setting, config or folder is wrong; nothing was written.
    128 + n: stopped by signal n, after saving.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    first = arguments[0] if arguments and not arguments[0].startswith("-") else None
    name, rest = (first, arguments[1:]) if first in COMMANDS else ("train", arguments)
    # The trainer's own errors are told from wrong settings below, so it must be there before anything can fail.
    from seqzoo.training import CheckpointError, Diverged, Interrupted

    try:
        return COMMANDS[name](rest, console)
    except Interrupted as stopped:
        return stopped.exit_code
    except (Diverged, CheckpointError) as error:
        return _fail(error, 1)
    except (_Wrong, FileNotFoundError) as error:
        return _fail(error, 2)


class _Wrong(Exception):
    """What the user gave does not fit; raised before anything is written."""


def train(arguments: list[str], console: Console) -> int:
    """`train [CONFIG.py] [--settings]`."""
    from seqzoo import training

    chosen = _checked(lambda: _parse(*_load(arguments)))
    for experiment in [chosen] if isinstance(chosen, config.Experiment) else [e for _, e in chosen.experiments()]:
        _checked(lambda experiment=experiment: training.check(experiment))
    run = chosen.run if isinstance(chosen, config.Experiment) else chosen.base.run
    return _run(chosen, training.create_folder(run.folder, chosen.name), console)


def resume(arguments: list[str], console: Console) -> int:
    """`resume RUN`."""
    from seqzoo import training

    folder, settings = _one_folder("resume", arguments)
    if settings:
        raise _Wrong(f"resume takes no settings, found {' '.join(settings)}: a run goes on as it began; wanted resume {folder}")
    chosen = _checked(lambda: training.open_run(folder))
    return _run(chosen, folder, console)


def evaluate(arguments: list[str], console: Console) -> int:
    """`eval RUN [--mesh...]`."""
    from seqzoo import training

    folder, rest = _one_folder("eval", arguments)
    held = _checked(lambda: training.open_run(folder))
    if isinstance(held, config.Comparison):
        inside = ", ".join(sorted(str(path.parent) for path in folder.rglob("config.json") if path.parent != folder))
        raise _Wrong(f"{folder} holds a comparison; wanted one of its runs: {inside or 'there is none yet'}")
    settings = tyro.cli(Evaluation, default=Evaluation(mesh=held.mesh), args=rest, prog=f"train.py eval {folder}", config=_FLAGS)
    step, results = _checked(lambda: training.evaluate_run(folder, console.print, mesh=settings.mesh))
    table = Table("slice", "accuracy", "loss", "chance", title=f"{folder} at step {step}")
    for name, result in results.items():
        table.add_row(name, f"{result['accuracy']:.3f}", f"{result['loss']:.4f}", f"{result['chance']:.3f}")
    console.print(table)
    return 0


COMMANDS: dict[str, Callable[[list[str], Console], int]] = {"train": train, "resume": resume, "eval": evaluate}


def _run(chosen: config.Config, folder: Path, console: Console) -> int:
    console.print(f"run folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    if isinstance(chosen, config.Comparison):
        from seqzoo import compare

        compare.run(chosen, folder, console=console)
    else:
        from seqzoo import training

        training.run(chosen, folder, console=console)
    return 0


def _load(arguments: list[str]) -> tuple[config.Config, list[str]]:
    """The config that the first argument names, and the other arguments."""
    if arguments and not arguments[0].startswith("-"):
        path = arguments[0]
        if not Path(path).exists() and not path.endswith(".py"):
            near = did_you_mean(path, COMMANDS)
            raise _Wrong(
                f"{path!r} is no command and no config file.{near} Commands: {', '.join(COMMANDS)}; a config file ends in .py"
            )
        if Path(path).is_dir():
            raise _Wrong(f"{path} is a folder; wanted a command or a config file: resume {path}, or eval {path}?")
        return config.load_file(path), arguments[1:]
    if QUICKSTART.is_file():
        return config.load_file(QUICKSTART), arguments
    from seqzoo import quickstart  # where there is no checkout

    return quickstart.config, arguments


def _parse(loaded: config.Config, arguments: list[str]) -> config.Config:
    """The loaded config with the command line's settings in place of its own. SystemExit for --help and wrong settings."""
    chosen = tyro.cli(type(loaded), default=loaded, args=arguments, prog="train.py", description=USAGE, config=_FLAGS)
    if isinstance(chosen, config.Comparison):
        changed = config.difference(chosen.base, loaded.base)
        for path in chosen.axes:
            if path in changed:
                raise _Wrong(f"{path} is an axis of this comparison, so one value for all would be lost; change it with --axes")
    return chosen


def _one_folder(command: str, arguments: list[str]) -> tuple[Path, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        raise _Wrong(f"{command} needs a run folder: train.py {command} runs/NAME")
    return Path(arguments[0]), arguments[1:]


def _checked(call):
    """`call()`, its ValueErrors turned into what the user gave wrong."""
    try:
        return call()
    except ValueError as error:
        raise _Wrong(str(error)) from error


def _fail(error: BaseException, code: int) -> int:
    Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
    return code
