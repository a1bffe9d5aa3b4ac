"""Tables on narrow terminals: every digit is there, in one piece."""

import io

import pytest
from rich.console import Console

from helpers.tiny import quiet, tiny
from seqzoo import cli, compare, training
from seqzoo.cli import model_summary
from seqzoo.compare.tables import new_table, print_table

ROWS = (("gla(heads=2, expand_v=2.0), softmax(window=256)", "0.991", "1,234,567"), ("chance", "0.008", ""))


def shown(width, call):
    """The text that `call(console)` prints on a terminal of that width."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    call(console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [8, 15, *range(20, 50), 80, 200])
def test_no_digit_is_cut_at_any_width(width):
    table = new_table("accuracy")
    table.add_column("", overflow="fold")
    for name in ("pairs\n4", "para-\nmeters"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in ROWS:
        table.add_row(*row)
    text = shown(width, lambda console: print_table(console, table))
    assert all(cell in text for row in ROWS for cell in row[1:]) and "…" not in text
    assert ("  parameters: 1,234,567" in text) == (width < 27), text


def test_the_tables_of_commands_are_whole_at_forty_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    experiment = tiny(task="mqar(vocab_size=4096, length=128, pairs=2, batch_size=8, eval_pairs=(1, 2, 32), eval_examples=16)")
    points = compare.grid_points(experiment)
    text = shown(40, lambda console: compare.show(experiment, console))
    assert all(f"{number:,}" in text for number in (points[0].parameters, points[0].state_bytes, points[0].tokens)), text
    described = model_summary.describe(experiment)
    text = shown(40, lambda console: model_summary.show(experiment, console))
    numbers = (described.state_bytes, described.layers[0].state_bytes, round(described.flops), round(described.layers[0].flops))
    assert all(f"{number:,}" in text for number in numbers), text
    training.train(tiny(training__steps=1), "run", console=quiet())
    for name, value in {"COLUMNS": "40", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["eval", "run"]) == 0
    shown_by_eval = capsys.readouterr().out
    results = training.evaluate_run("run", lambda line: None)[1]
    assert all(f"{result['loss']:.4f}" in shown_by_eval for result in results.values()) and "…" not in shown_by_eval, shown_by_eval
