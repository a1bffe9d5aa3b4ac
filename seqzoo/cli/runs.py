"""The commands train, resume and eval."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from seqzoo import config
from seqzoo.cli import comparisons
from seqzoo.cli.comparisons import NO_FLAGS, Flags
from seqzoo.cli.shared import (
    UsageError,
    checked,
    choose_config,
    parse_arguments,
    parse_settings,
    take_flag,
    take_run_folder,
)
from seqzoo.cli.sweeps import SWEEP, sweep, without_repeats
from seqzoo.compare.tables import new_table, print_line, print_table
from seqzoo.entry import program

DRY_RUN, ESTIMATE, CHANGED, GO_BACK, TEST = "--dry-run", "--estimate", "--changed", "--go-back", "--test"


def train(arguments: list[str], console: Console, only_comparisons: bool = False) -> int:
    """`train [CONFIG.py] [--settings] [--sweep SETTING=VALUE,VALUE ...] [--dry-run]`, and flags of comparisons."""
    from seqzoo import compare, training
    from seqzoo.training.run import distributed

    dry, estimate = DRY_RUN in arguments, ESTIMATE in arguments
    arguments = [word for word in arguments if word not in (DRY_RUN, ESTIMATE)]
    if estimate and not dry:
        raise UsageError(f"{ESTIMATE} is a part of the dry run; wanted {DRY_RUN} {ESTIMATE}")
    flags, arguments = comparisons.take_flags(arguments)
    sweeps, arguments = take_flag(SWEEP, arguments)
    loaded, words = checked(lambda: choose_config(arguments))
    chosen = checked(lambda: parse_settings(loaded, words))
    if sweeps:
        chosen = checked(lambda: sweep(loaded, chosen, sweeps))
    if isinstance(chosen, config.Comparison):
        chosen = without_repeats(chosen, lambda line: print_line(console, line))
    else:
        comparisons.refuse_for_one_run(flags, "this config is one run", only_comparisons)
    comparisons.refuse_useless(flags, new=True)
    if dry:
        checked(lambda: compare.show(chosen, console))
        if estimate:
            checked(lambda: compare.check(chosen))
            checked(lambda: compare.show_estimate(chosen, console))
        return 0
    refuse_distributed_comparison(chosen)
    checked(lambda: compare.check(chosen))
    checked(lambda: compare.check_jobs(flags.jobs))
    run = chosen.run if isinstance(chosen, config.Experiment) else chosen.base.run
    if isinstance(chosen, config.Comparison) and flags.shard:
        return start(chosen, comparisons.folder_of(chosen), console, flags=flags)
    folder = distributed.from_main_process(lambda: str(training.create_run_dir(run.folder, chosen.name)))
    return start(chosen, Path(folder), console, flags=flags)


class Evaluation(config.Section):
    """Settings of `eval`."""

    mesh: config.Mesh
    """Parallelism over devices; it may differ from the training."""
    step: int | None = None
    """Step of the checkpoint; None: the latest."""


def resume(arguments: list[str], console: Console, only_comparisons: bool = False) -> int:
    """`resume RUN [--settings] [--changed] [--go-back]`, or `resume COMPARISON` with flags of comparisons."""
    from seqzoo import compare, training

    folder, words = take_run_folder("resume", arguments)
    flags, words = comparisons.take_flags(words)
    found = checked(lambda: training.load_config(folder))
    refuse_distributed_comparison(found)
    changed, go_back = (flag in words for flag in (CHANGED, GO_BACK))
    words = [word for word in words if word not in (CHANGED, GO_BACK)]
    if isinstance(found, config.Experiment):
        comparisons.refuse_for_one_run(flags, f"{folder} holds one run", only_comparisons)
    comparisons.refuse_useless(flags, new=False)
    if not words:
        if isinstance(found, config.Experiment):
            checked(lambda: training.check(found, resumed=True))
        elif go_back:
            raise UsageError(f"{folder} holds a comparison; wanted {GO_BACK} with the one of its runs that lacks something")
        checked(lambda: compare.check_jobs(flags.jobs))
        return start(found, folder, console, changed=changed, go_back=go_back, flags=flags)
    stored = one_experiment(found, folder)
    chosen = parse_settings(stored, words, prog=f"{program()} resume {folder}")
    mesh = chosen.mesh if chosen.mesh != stored.mesh else None
    chosen = chosen.model_copy(update={"mesh": stored.mesh})
    if not changed:
        checked(lambda: training.refuse_changes(folder, stored, chosen))
    resumed = chosen if mesh is None else chosen.model_copy(update={"mesh": mesh})
    checked(lambda: training.check(resumed, resumed=True))
    return start(chosen, folder, console, mesh, changed, go_back)


def evaluate(arguments: list[str], console: Console) -> int:
    """`eval RUN [--test] [--mesh...] [--step...]`."""
    from seqzoo import training

    test, arguments = TEST in arguments, [word for word in arguments if word != TEST]
    folder, words = take_run_folder("eval", arguments)
    stored = one_experiment(checked(lambda: training.load_config(folder)), folder)
    chosen = parse_arguments(Evaluation, words, f"{program()} eval {folder}", default=Evaluation(mesh=stored.mesh))
    say = lambda line: print_line(console, line)
    step, results = checked(lambda: training.evaluate_run(folder, say, chosen.mesh, chosen.step, test=test))
    shown = {"accuracy": ".3f", "loss": ".4f", "bits_per_byte": ".4f", "chance": ".3f"}
    shown = {name: form for name, form in shown.items() if any(result.get(name) is not None for result in results.values())}
    table = new_table(Text(f"{folder} at step {step}"))
    table.add_column("test set" if test else "evaluation set", overflow="fold")
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for name, result in results.items():
        table.add_row(
            Text(name), *(format(result[key], form) if result.get(key) is not None else "" for key, form in shown.items())
        )
    print_table(console, table)
    return 0


def one_experiment(stored: config.Config, folder: Path) -> config.Experiment:
    """The experiment of a run folder; raises UsageError if it holds a comparison."""
    if isinstance(stored, config.Comparison):
        inside = ", ".join(sorted(str(path.parent) for path in folder.rglob("config.json") if path.parent != folder))
        raise UsageError(f"{folder} holds a comparison; wanted one of its runs: {inside or 'there is none yet'}")
    return stored


def refuse_distributed_comparison(chosen: config.Config) -> None:
    """Raises UsageError if several processes would run a comparison."""
    from seqzoo.training.run import distributed

    if isinstance(chosen, config.Comparison) and distributed.is_multiprocess():
        raise UsageError("a comparison runs in one process, found several; wanted one experiment, or --distributed off")


def start(
    chosen: config.Config,
    folder: Path,
    console: Console,
    mesh: config.Mesh | None = None,
    changed: bool = False,
    go_back: bool = False,
    flags: Flags = NO_FLAGS,
) -> int:
    """Trains the chosen config in a folder, and returns the exit code."""
    console.print(f"run folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    if isinstance(chosen, config.Comparison):
        return comparisons.run(chosen, folder, flags, console)
    from seqzoo import training

    run = lambda: training.train(chosen, folder, console=console, mesh=mesh, changed=changed, go_back=go_back)
    checked(run) if changed else run()
    return 0
