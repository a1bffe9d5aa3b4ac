"""The command line: `train.py [COMMAND | CONFIG.py] [--settings]`, installed as `seqzoo`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from seqzoo import config
from seqzoo.registry import did_you_mean

QUICKSTART = Path("configs/quickstart.py")
DRY_RUN = "--dry-run"

USAGE = """train.py [COMMAND | CONFIG.py] [--settings]

- train.py: train the quickstart comparison
- train.py CONFIG.py: train what the file's `config` describes
- train.py train [CONFIG.py]: the same, in full
- train.py [CONFIG.py] --dry-run: list what would be trained, with parameters, state bytes, steps and tokens; nothing is written
- train.py resume RUN [--mesh...]: go on with a run folder that was stopped, on other devices if need be
- train.py eval RUN [--mesh...]: evaluate a run's latest checkpoint and print its slices
- train.py inspect RUN | CONFIG.py [--settings]: what a run is and how it stands, also while it trains; the model by its parts
- train.py plot RUN... [--metric loss] [--x step] [--out FILE.png]: draw the curves of runs, and of all runs of a comparison

Several processes, on one machine or many that share the run folder, train one experiment: start the same command in each with
--distributed ADDRESS:PORT/COUNT/INDEX (where process 0 listens, how many there are, which one this is), or with
--distributed auto where the cluster tells. SIGTERM to any of them saves and stops all.

Any setting can be changed: --model.layers "mamba2, softmax(window=256, heads=2)" --optimizer.learning-rate 3e-3.
Below are those of the chosen config, with its values.
"""

_FLAGS = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)


class Devices(config.Section):
    """Settings of `resume` and `eval`: the devices need not be those of the training so far."""

    mesh: config.Mesh
    """Which devices do what."""


class Plot(config.Section):
    """Settings of `plot`."""

    metric: str = "loss"
    """A name that lines of metrics.jsonl have: "loss", "accuracy", "gradient_norm", "tokens_per_second", "position_loss" ..."""
    x: Literal["step", "tokens", "seconds"] = "step"
    """What the metric is drawn against."""
    out: str | None = None
    """PNG to write; None: the metric's name in the current folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (`sys.argv` by default) and returns the exit code.

    0: done. 1: the run diverged, no checkpoint loads, or something could not be written. 2: a setting, config or folder is wrong;
    nothing was written.
    128 + n: stopped by signal n, after saving.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # The trainer's own errors are told from wrong settings below, so it must be there before anything can fail.
    from seqzoo.training import CheckpointError, Diverged, Interrupted, WriteError, distributed

    try:
        how, arguments = _distributed(arguments)
        _checked(lambda: distributed.initialise(how))
    except _Wrong as error:
        return _fail(error, 2)
    console = Console(quiet=how != "off" and not distributed.first())
    first = arguments[0] if arguments and not arguments[0].startswith("-") else None
    name, rest = (first, arguments[1:]) if first in COMMANDS else ("train", arguments)
    try:
        return COMMANDS[name](rest, console)
    except Interrupted as stopped:
        return stopped.exit_code
    except (Diverged, CheckpointError) as error:
        return _fail(error, 1)
    except WriteError as error:
        code = _fail(error, 1)
        distributed.leave(code)
        return code
    except (_Wrong, FileNotFoundError) as error:
        return _fail(error, 2)


class _Wrong(Exception):
    """What the user gave does not fit; raised before anything is written."""


def train(arguments: list[str], console: Console) -> int:
    """`train [CONFIG.py] [--settings] [--dry-run]`."""
    from seqzoo import compare, training

    dry, arguments = DRY_RUN in arguments, [word for word in arguments if word != DRY_RUN]
    chosen = _checked(lambda: _parse(*_load(arguments)))
    if dry:
        _checked(lambda: compare.show(chosen, console))
        return 0
    _alone_if_comparison(chosen)
    for experiment, *_ in compare.alike(chosen).values():
        _checked(lambda experiment=experiment: training.check(experiment))
    run = chosen.run if isinstance(chosen, config.Experiment) else chosen.base.run
    folder = training.distributed.from_first(lambda: training.create_folder(run.folder, chosen.name))
    return _run(chosen, folder, console)


def resume(arguments: list[str], console: Console) -> int:
    """`resume RUN [--mesh...]`."""
    from seqzoo import training

    folder, settings = _one_folder("resume", arguments)
    chosen = _checked(lambda: training.open_run(folder))
    _alone_if_comparison(chosen)
    if not settings:
        return _run(chosen, folder, console)
    mesh = _devices("resume", folder, chosen, settings)
    _checked(lambda: training.check(chosen.model_copy(update={"mesh": mesh})))
    return _run(chosen, folder, console, mesh)


def evaluate(arguments: list[str], console: Console) -> int:
    """`eval RUN [--mesh...]`."""
    from seqzoo import training

    folder, rest = _one_folder("eval", arguments)
    held = _checked(lambda: training.open_run(folder))
    mesh = _devices("eval", folder, held, rest)
    step, results = _checked(lambda: training.evaluate_run(folder, console.print, mesh=mesh))
    table = Table("slice", "accuracy", "loss", "chance", title=f"{folder} at step {step}")
    for name, result in results.items():
        table.add_row(name, f"{result['accuracy']:.3f}", f"{result['loss']:.4f}", f"{result['chance']:.3f}")
    console.print(table)
    return 0


def inspect(arguments: list[str], console: Console) -> int:
    """`inspect RUN`, or `inspect CONFIG.py [--settings]`."""
    import jax

    from seqzoo import compare
    from seqzoo import inspect as looking

    jax.config.update("jax_platforms", "cpu")  # the accelerators are left to the run
    if not (arguments and arguments[0].endswith(".py")):
        folder, rest = _one_folder("inspect", arguments)
        if rest:
            raise _Wrong(f"inspect takes one run folder and no settings, found {' '.join(rest)}; a config file may have settings")
        _checked(lambda: looking.show_run(folder, console))
        return 0
    chosen = _checked(lambda: _parse(*_load(arguments)))
    for label, (experiment, *_) in compare.alike(chosen).items():
        if isinstance(chosen, config.Comparison):
            console.rule(label)
        _checked(lambda experiment=experiment: looking.show(experiment, console))
    return 0


def plot(arguments: list[str], console: Console) -> int:
    """`plot RUN... [--metric...] [--x...] [--out...]`."""
    from seqzoo.compare import curves, pictures
    from seqzoo.training.writing import writing

    count = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    folders, words = arguments[:count], arguments[count:]
    settings = tyro.cli(Plot, args=words, prog="train.py plot RUN...", config=_FLAGS)
    if not folders:
        raise _Wrong("plot needs run folders: train.py plot runs/NAME runs/OTHER")
    figure = _checked(lambda: curves.draw(folders, settings.metric, settings.x))
    out = Path(settings.out or f"{settings.metric}.png")
    with writing(out):
        pictures.save(figure, out)
    console.print(f"written: {out}", markup=False, highlight=False, soft_wrap=True)
    return 0


COMMANDS: dict[str, Callable[[list[str], Console], int]] = {
    "train": train,
    "resume": resume,
    "eval": evaluate,
    "inspect": inspect,
    "plot": plot,
}


def _distributed(arguments: list[str]) -> tuple[str, list[str]]:
    """The value of --distributed, and the other arguments. It is no setting, as it differs from process to process."""
    rest, how = [], "off"
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--distributed":
            rest.append(word)
            continue
        how = value if equals else next(words, "")
    return how, rest


def _alone_if_comparison(chosen: config.Config) -> None:
    """Raises _Wrong if several processes are to run a comparison."""
    from seqzoo.training import distributed

    if isinstance(chosen, config.Comparison) and distributed.several():
        raise _Wrong("a comparison runs in one process, found several; wanted one experiment, or --distributed off")


def _devices(command: str, folder: Path, held: config.Config, arguments: list[str]) -> config.Mesh:
    """The mesh of a run with the command line's settings in place of its own."""
    if isinstance(held, config.Comparison):
        inside = ", ".join(sorted(str(path.parent) for path in folder.rglob("config.json") if path.parent != folder))
        raise _Wrong(f"{folder} holds a comparison; wanted one of its runs: {inside or 'there is none yet'}")
    other = [word for word in arguments if word.startswith("--") and not word.startswith(("--mesh.", "--help"))]
    if other:
        raise _Wrong(f"{command} takes only --mesh settings, found {' '.join(other)}: a run goes on as it began")
    prog = f"train.py {command} {folder}"
    return tyro.cli(Devices, default=Devices(mesh=held.mesh), args=arguments, prog=prog, config=_FLAGS).mesh


def _run(chosen: config.Config, folder: Path, console: Console, mesh: config.Mesh | None = None) -> int:
    console.print(f"run folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    if isinstance(chosen, config.Comparison):
        from seqzoo import compare

        compare.run(chosen, folder, console=console)
    else:
        from seqzoo import training

        training.run(chosen, folder, console=console, mesh=mesh)
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
        for path in sorted(chosen.varied):
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
