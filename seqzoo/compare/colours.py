"""Colours and line styles by label: a mixer looks the same in every figure."""

import itertools
import re
import zlib
from collections.abc import Iterable
from typing import NamedTuple

# Neighbours in the table differ in hue and in lightness, so that they stay distinct in grey and for colour-blind readers.
MIXERS = {
    "softmax": "#4a4a4a",
    "sigmoid": "#e07b00",
    "linear": "#8c6d46",
    "gla": "#0072b2",
    "mamba": "#d62f5b",
    "mamba2": "#7e57c2",
    "aaren": "#2a9d4e",
}

# Any other name gets one of these by a hash of the name: a new mixer has a fixed colour without an entry above.
OTHERS = ("#17a3b8", "#b5a000", "#c2185b", "#5c6bc0", "#6d8b3c", "#a1543c", "#00796b", "#d081b5", "#52606d", "#4f9bd9")

DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
MARKERS = ("o", "s", "^", "D")


class Style(NamedTuple):
    """Colour, dashes and marker of a label."""

    colour: str
    dash: str | tuple  # a matplotlib line style
    marker: str


def colour(label: str) -> str:
    """The colour of a label: the colour of the mixer named first in it."""
    name = re.split(r"\W", label, maxsplit=1)[0]
    return MIXERS.get(name) or OTHERS[zlib.crc32(name.encode()) % len(OTHERS)]


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each label of one figure: labels of one colour (variants of a mixer) differ by dashes and markers."""
    seen: dict[str, itertools.count] = {}
    result = {}
    for label in dict.fromkeys(labels):
        number = next(seen.setdefault(colour(label), itertools.count()))
        result[label] = Style(colour(label), DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)])
    return result
