"""The command `inspect`: a run's status and its model, or the models of a config file."""

from rich.console import Console

from seqzoo import config
from seqzoo.cli.shared import UsageError, checked, choose_config, parse_settings, take_run_folder


def inspect(arguments: list[str], console: Console) -> int:
    """`inspect RUN`, or `inspect CONFIG.py [--settings]`."""
    import jax

    from seqzoo import compare
    from seqzoo.cli import model_summary, run_summary

    jax.config.update("jax_platforms", "cpu")  # accelerators stay free for the run
    if not (arguments and arguments[0].endswith(".py")):
        folder, rest = take_run_folder("inspect", arguments)
        if rest:
            found = " ".join(rest)
            raise UsageError(f"inspect takes one run folder and no settings, found {found}; a config file may have settings")
        checked(lambda: run_summary.show_run(folder, console))
        return 0
    chosen = checked(lambda: parse_settings(*choose_config(arguments)))
    for label, (experiment, *_) in compare.group_by_label(chosen).items():
        if isinstance(chosen, config.Comparison):
            console.rule(label)
        checked(lambda experiment=experiment: model_summary.show(experiment, console))
    return 0
