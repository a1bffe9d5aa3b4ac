"""Colour, marker and dashes of a mixer: the same in every table, figure and page.

The colours are apart in normal and in colour-blind vision and dark enough on white (a test computes both); markers repeat the
difference. No two mixers share colour and marker, and the dashes tell the family.
"""

import itertools
import re
import zlib
from collections.abc import Iterable
from typing import NamedTuple

INK, BLUE, ORANGE, GREEN, PINK = "#222222", "#0072b2", "#e06c00", "#00966d", "#cc79a7"
WINE, PURPLE, SKY, BROWN = "#991f4f", "#4b0092", "#3896e4", "#8c6d46"
COLOURS = (INK, BLUE, ORANGE, GREEN, PINK, WINE, PURPLE, SKY, BROWN)
MARKERS = ("o", "s", "^", "D")
OTHER_MARKERS = ("v", "P", "h")  # of mixers without an entry below

# By family, which is the folder in seqzoo/mixers.
FAMILIES = {
    "attention": {"softmax": (INK, "o"), "sigmoid": (ORANGE, "s")},
    "linear_attention": {
        "linear": (PINK, "o"),
        "aaren": (BROWN, "D"),
        "based": (INK, "^"),
        "flow": (SKY, "s"),
        "gla": (BLUE, "o"),
        "gsa": (GREEN, "D"),
        "hgrn2": (WINE, "^"),
        "lightning": (ORANGE, "^"),
        "mlstm": (PURPLE, "^"),
        "norm_attention": (PINK, "s"),
        "retnet": (BROWN, "o"),
        "simple_gla": (SKY, "^"),
    },
    "delta_rule": {
        "comba": (WINE, "s"),
        "deltanet": (GREEN, "o"),
        "gated_deltanet": (ORANGE, "o"),
        "gated_deltaproduct": (BLUE, "s"),
        "kda": (PURPLE, "D"),
    },
    "state_space": {
        "lru": (PINK, "^"),
        "mamba": (WINE, "o"),
        "mamba2": (PURPLE, "o"),
        "mega_ema": (BROWN, "s"),
        "s4d": (GREEN, "^"),
        "s5": (INK, "s"),
    },
    "recurrent": {
        "hgrn": (BROWN, "^"),
        "min_gru": (GREEN, "s"),
        "min_lstm": (PINK, "D"),
        "qlstm": (INK, "D"),
        "rg_lru": (BLUE, "D"),
    },
    "rwkv": {"rwkv4": (SKY, "D"), "rwkv6": (ORANGE, "D"), "rwkv7": (SKY, "o")},
    "convolution": {"base_conv": (BLUE, "^")},
}
PLUGIN = "plug-in"  # family of a mixer without an entry

Dash = tuple[float, ...]  # lengths of strokes and gaps in line widths; () is a solid line
DASHES: dict[str, Dash] = {
    "attention": (),
    "linear_attention": (7, 1.5),
    "delta_rule": (3.5, 1.2),
    "state_space": (6, 1.3, 1.3, 1.3),
    "recurrent": (1.3, 1.3),
    "rwkv": (6, 1.2, 1.2, 1.2, 1.2, 1.2),
    "convolution": (1.3, 3),
    PLUGIN: (10, 3),
}

# Dashes and markers of more labels of one mixer: the next pair always differs from the last in both.
VARIANTS = tuple(
    (dash, marker)
    for shift in range(len(DASHES))
    for dash, marker in zip(
        itertools.islice(itertools.cycle(DASHES.values()), shift, None), (*MARKERS, *OTHER_MARKERS), strict=False
    )
)


class Style(NamedTuple):
    """Colour, dashes and marker of a label."""

    colour: str
    dash: Dash
    marker: str  # of matplotlib

    @property
    def line(self) -> str | tuple[int, Dash]:
        """The dashes as a line style of matplotlib."""
        return (0, self.dash) if self.dash else "-"


def mixers_in(label: str) -> list[str]:
    """The mixers that a label names, in order, without convolutions in front of others."""
    depths = itertools.accumulate((character in "([{") - (character in ")]}") for character in label)
    outside = "".join(character for character, depth in zip(label, depths, strict=True) if depth == 0 and character not in ")]}")
    found = re.findall(r"\w+", re.split(r"\s[\w.]+=", outside, maxsplit=1)[0])
    return [name for name in found if name not in FAMILIES["convolution"]] or found


def family(mixer: str) -> str:
    """The family of a mixer by its name; PLUGIN for a mixer of another project."""
    return next((name for name, members in FAMILIES.items() if mixer in members), PLUGIN)


def style(label: str) -> Style:
    """The look of a label: that of the mixer named first in it. Another name than a mixer's here has one by its hash."""
    name = next(iter(mixers_in(label)), label)
    kind, number = family(name), zlib.crc32(name.encode())
    hashed = COLOURS[number % len(COLOURS)], OTHER_MARKERS[number // len(COLOURS) % len(OTHER_MARKERS)]
    colour, marker = FAMILIES.get(kind, {}).get(name, hashed)
    return Style(colour, DASHES[kind], marker)


def colour(label: str) -> str:
    """The colour of a label."""
    return style(label).colour


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each label of one figure: labels of one mixer keep its colour and differ by dashes and markers."""
    own = {label: style(label) for label in labels}
    result: dict[str, Style] = {}
    for label, first in own.items():
        if first not in result.values():
            result[label] = first
            continue
        taken = {*own.values(), *result.values()}
        variants = (Style(first.colour, *look) for look in sorted(VARIANTS, key=lambda look: look[1] == first.marker))
        result[label] = next((each for each in variants if each not in taken), first)
    return result
