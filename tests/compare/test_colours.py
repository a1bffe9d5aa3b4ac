"""Every mixer has one look, which colour-blind readers can tell from all others; labels are as short as they can be."""

import itertools

import numpy as np
import pytest

from seqzoo import mixers
from seqzoo.compare.colours import COLOURS, DASHES, FAMILIES, OTHER_MARKERS, PLUGIN, colour, family, mixers_in, style, styles
from seqzoo.compare.names import differing_settings, short_names

# Machado, Oliveira and Fernandes 2009, table of severity 1.0, on linear RGB; "typical" is the identity.
VISION = {
    "typical": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# Oklab (Ottosson 2020): linear RGB to cone responses, and their cube roots to lightness and two hues; 0.02 is just noticeable.
CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
LAB = [
    [0.2104542553, 0.793617785, -0.0040720468],
    [1.9779984951, -2.428592205, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.808675766],
]


def linear(hexadecimal):
    values = np.array([int(hexadecimal[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("vision", VISION)
def test_the_colours_are_apart_in_every_vision(vision):
    seen = [np.array(LAB) @ np.cbrt(np.array(CONES) @ np.clip(np.array(VISION[vision]) @ linear(each), 0, 1)) for each in COLOURS]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 0.05


def test_the_colours_are_dark_enough_on_white():
    luminance = [np.dot([0.2126, 0.7152, 0.0722], linear(each)) for each in COLOURS]
    assert min(1.05 / (each + 0.05) for each in luminance) >= 3.0  # WCAG 2.1, 1.4.11, for graphics


def test_every_mixer_has_a_look_of_its_own_in_the_family_of_its_folder():
    folders = {name: mixers.registry.get(name).__module__.split(".") for name in mixers.registry.names()}
    ours = {name: parts[2] for name, parts in folders.items() if parts[:2] == ["seqzoo", "mixers"]}  # not those of plug-ins
    assert {name: kind for kind, members in FAMILIES.items() for name in members} == ours, "colours.py: add or move the mixer"
    looks = [look for members in FAMILIES.values() for look in members.values()]
    assert len(looks) == len(set(looks)) and DASHES.keys() == {*FAMILIES, PLUGIN} and len(set(DASHES.values())) == len(DASHES)


def test_the_look_of_a_label_does_not_depend_on_other_labels():
    assert styles(["gla", "softmax"])["softmax"] == styles(["softmax"])["softmax"] == style("softmax")
    assert colour("gla(heads=2) d_model=64") == colour("gla") != colour("mamba") != colour("mamba2")
    assert style("base_conv(conv_size=3), gla(heads=2)") == style("gla")  # not that of the convolution in front
    assert style("unlisted") == style("unlisted(heads=2)") and style("unlisted").marker in OTHER_MARKERS
    assert family("unlisted") == PLUGIN and family("kda") == "delta_rule"


def test_variants_of_one_mixer_keep_its_colour_and_differ_by_dashes_and_markers():
    labels = ["softmax", *(f"gla(heads={2**i})" for i in range(20)), "gla"]
    looks = styles(labels)
    assert len(set(looks.values())) == len(labels) and {looks[label].colour for label in labels[1:]} == {colour("gla")}


def test_the_mixers_of_a_label_end_where_its_settings_begin():
    assert mixers_in("mamba2(expand=1), softmax(a=(1, 2)) task=mqar(pairs=8)") == ["mamba2", "softmax"]
    assert mixers_in("base_conv") == ["base_conv"] and mixers_in("</script>") == ["script"] and mixers_in("") == []


@pytest.mark.parametrize(
    ("full", "short"),
    [
        (["softmax(heads=2, rope_theta=None)", "gla(heads=2)"], ["softmax", "gla"]),
        (["gla(heads=2, expand_v=2)", "gla(heads=4, expand_v=2)", "mamba"], ["gla(heads=2)", "gla(heads=4)", "mamba"]),
        (["gla", "gla(heads=4)"], ["gla", "gla(heads=4)"]),
        (["softmax(window=16, heads=2)", "softmax(heads=2)"], ["softmax(window=16)", "softmax"]),
        (["base_conv(conv_size=3), gla(heads=2)", "base_conv(conv_size=3), kda"], ["gla", "kda"]),
        (
            ["base_conv(conv_size=3), gla", "base_conv(conv_size=4), gla"],
            ["base_conv(conv_size=3), gla", "base_conv(conv_size=4), gla"],
        ),
        (["base_conv, gla", "gla"], ["base_conv, gla", "gla"]),
        (["mamba2, softmax(heads=2)", "mamba2, gla"], ["mamba2, softmax", "mamba2, gla"]),
        (["base_conv"], ["base_conv"]),
        (["one head", "gla(heads=2)"], ["one head", "gla"]),
        (["gla(a=1)", "gla(a=1, )", "gla(a=1,)"], ["gla(a=1)", "gla(a=1, )", "gla(a=1,)"]),  # equal specs, different texts
        (["x(a={1: []})", "x(a={1: [2]})"], ["x(a={1: []})", "x(a={1: [2]})"]),
        ([], []),
    ],
)
def test_names_are_the_shortest_that_are_unambiguous(full, short):
    assert list(short_names(full).values()) == short


def test_settings_that_differ_are_named_by_their_last_part_where_that_is_enough():
    many = [
        {"model.depth": 2, "task": "a", "x.steps": 1, "y.steps": 1},
        {"model.depth": 4, "task": "a", "x.steps": 2, "y.steps": 2},
    ]
    assert [list(each.values()) for each in differing_settings(many)] == [
        ["depth=2", "x.steps=1", "y.steps=1"],
        ["depth=4", "x.steps=2", "y.steps=2"],
    ]
