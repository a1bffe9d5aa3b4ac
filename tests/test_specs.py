"""Spec strings: parsing, canonical form, and the errors for wrong ones."""

import re

import pytest

from seqzoo import channels, mixers
from seqzoo.specs import Spec, SpecError, parse, settings_help, split


def test_a_spec_parses_and_writes_itself_back():
    spec = parse(" softmax(window=256,  qk_norm='rms') ")
    assert spec == Spec("softmax", (("window", 256), ("qk_norm", "rms")))
    assert parse(str(spec)) == spec and str(parse("gla")) == "gla"


def test_only_top_level_commas_separate_specs():
    assert split("mamba2, softmax(window=256, heads=2),gla") == ("mamba2", "softmax(window=256, heads=2)", "gla")


@pytest.mark.parametrize("text", ["", "gla(", "gla(4)", "a.b", "gla(**x)", "gla(heads=f())", "gla(heads=heads)"])
def test_what_is_no_spec_is_refused(text):
    with pytest.raises(SpecError, match=re.escape(repr(text))):
        parse(text)


@pytest.mark.parametrize(
    ("registry", "spec", "message"),
    [
        (mixers.registry, "softmx", "no mixer is called 'softmx'. Did you mean 'softmax'?"),
        (mixers.registry, "softmax(head=4)", "softmax has no setting 'head'. Did you mean 'heads'?"),
        (mixers.registry, "gla(rngs=1)", "gla has no setting 'rngs'"),
        (mixers.registry, "GLA", "no mixer is called 'GLA'. Did you mean 'gla'?"),
        (mixers.registry, "gla(heads=2, heads=4)", "'heads' is given twice, wanted once"),
        (channels.registry, "swigl", "no channel mixer is called 'swigl'. Did you mean 'swiglu'?"),
    ],
)
def test_a_wrong_name_or_setting_is_answered_with_the_nearest(registry, spec, message):
    with pytest.raises(SpecError) as caught:
        registry.check(spec)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", mixers.names())
def test_every_mixer_says_what_it_is(name):
    """Formula, arguments, cost and source are in the docstring, and every setting is explained there."""
    text = mixers.registry.get(name).__doc__
    for part in ("Cost:", "arXiv:", "Use it"):
        assert part in text, f"{name}: no {part!r} in the docstring"
    explained = settings_help(mixers.registry.get(name))
    missing = [setting.name for setting in explained if not setting.text and setting.name not in text]
    assert not missing, f"{name}: settings without a line of help: {missing}"
