"""The one place of colours: a mixer looks the same in every picture."""

import itertools
import re
import zlib
from collections.abc import Iterable
from typing import NamedTuple

# Neighbours in the table differ in hue and in lightness, so that they stay apart in grey and for colour-blind eyes.
MIXERS = {
    "softmax": "#4a4a4a",
    "sigmoid": "#e07b00",
    "linear": "#8c6d46",
    "gla": "#0072b2",
    "mamba": "#d62f5b",
    "mamba2": "#7e57c2",
    "aaren": "#2a9d4e",
}

# For every other name, by a hash of it: a new mixer needs no entry above to have a colour that stays.
OTHERS = ("#17a3b8", "#b5a000", "#c2185b", "#5c6bc0", "#6d8b3c", "#a1543c", "#00796b", "#d081b5", "#52606d", "#4f9bd9")

DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
MARKERS = ("o", "s", "^", "D")


class Style(NamedTuple):
    """How a label is drawn."""

    colour: str
    dash: str | tuple  # a matplotlib line style
    marker: str


def colour(label: str) -> str:
    """The colour of a label: that of the mixer it begins with."""
    name = re.match(r"\w*", label).group()
    return MIXERS.get(name) or OTHERS[zlib.crc32(name.encode()) % len(OTHERS)]


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each label of one picture: labels of one colour (a mixer's variants) differ by dashes and markers."""
    seen: dict[str, itertools.count] = {}
    result = {}
    for label in dict.fromkeys(labels):
        number = next(seen.setdefault(colour(label), itertools.count()))
        result[label] = Style(colour(label), DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)])
    return result
