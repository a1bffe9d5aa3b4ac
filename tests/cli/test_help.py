"""`help` lists every name that a spec can hold, and shows each setting with its type, default and text."""

import pytest

from benchmarks.tables import reference
from seqzoo import channels, cli, mixers, tasks
from seqzoo.cli.reference import REGISTRIES, default_in_words, entries
from seqzoo.specs import Spec, parse


def shown(capsys, *words):
    """The output of the command."""
    assert cli.main(["help", *words]) == 0
    return capsys.readouterr().out


def test_all_names_are_listed_by_kind(capsys):
    lines = shown(capsys).splitlines()
    for registry in (mixers.registry, channels.registry, tasks.registry):
        assert f"{registry.kind}s:" in lines
        for name in registry.names():
            assert any(line.startswith(f"  {name} ") for line in lines), name


def test_a_mixer_is_shown_with_its_settings_their_types_defaults_and_texts(capsys):
    text = shown(capsys, "gla")
    assert text.startswith("gla: mixer, seqzoo.mixers.linear_attention.gla.GatedLinearAttention\n\nGated linear attention (Yang")
    assert "  gate_temperature: number > 0, default 16.0\n    tau; larger values forget more slowly" in text
    assert "  scale: number or None, default None\n" in text and "S_t = Diag(alpha_t) S_{t-1}" in text


def test_tasks_and_channel_mixers_are_shown_too(capsys):
    text = shown(capsys, "mqar", "swiglu")
    assert "mqar: task, seqzoo.tasks.mqar.MQAR" in text and "swiglu: channel mixer, " in text
    assert "  pairs: int in [1, 2**31) or a tuple of int in [1, 2**31), default 8\n" in text


def test_a_class_and_a_setting_of_an_experiment_are_found_too(capsys):
    assert shown(capsys, "GatedLinearAttention") == shown(capsys, "gla")
    assert shown(capsys, "learning-rate") == shown(capsys, "optimizer.learning_rate")
    assert "--optimizer.learning-rate: setting of an experiment, default 0.001\n    Largest" in shown(capsys, "learning_rate")
    assert "--mesh.fsdp: " in shown(capsys, "mesh") and "--mesh.fsdp: " in shown(capsys, "fsdp")


def test_an_unknown_name_is_refused_with_the_nearest(capsys):
    assert cli.main(["help", "sofmax"]) == 2
    assert "nothing is called 'sofmax'. Did you mean 'softmax'?" in capsys.readouterr().err


def test_a_command_is_explained_by_the_usage(capsys):
    assert "train.py resume RUN" in shown(capsys, "resume")


@pytest.mark.parametrize("each", tuple(entries()), ids=lambda each: f"{each.kind} {each.name}")
def test_every_name_and_every_setting_is_described(each):
    assert each.summary and each.source.startswith("seqzoo.")
    silent = [setting.name for setting in each.settings if not setting.text]
    assert not silent, f"{each.kind} {each.name}: settings without a line of help: {silent}"


@pytest.mark.parametrize("each", tuple(entries()), ids=lambda each: f"{each.kind} {each.name}")
def test_the_defaults_shown_are_a_valid_spec(each):
    given = [(setting.name, setting.default) for setting in each.settings if setting.default is not ...]
    assert parse(str(Spec(each.name, tuple(given)))).settings == tuple(given)
    assert all(default_in_words(setting) == "..." for setting in each.settings if setting.default is ...)
    if len(given) == len(each.settings):
        REGISTRIES[each.kind].check(each.defaults)


def test_the_reference_page_is_current():
    """Regenerate it with `python -m benchmarks.tables.reference`."""
    assert reference.PAGE.read_text() == reference.markdown()
