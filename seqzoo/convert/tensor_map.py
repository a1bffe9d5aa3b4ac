"""Rules: which parameters a tensor of a file becomes. A rule names its targets and makes one array for each."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """One tensor of the file becomes the parameters `targets`, dotted paths such as "mixer.x.w"."""

    targets: tuple[str, ...]
    make: Callable[..., Sequence[np.ndarray]]
    tied_to: str | None = None  # the file may hold this tensor, as a copy of that one
    needed: bool = True  # else the file may lack it, and its targets are zero then
    extra_inputs: tuple[str, ...] = ()  # tensors that `make` takes behind this one
    alias: str | None = None  # another name under which the file may hold this tensor


def copy(target: str) -> Rule:
    """As it is."""
    return Rule((target,), lambda x: (x,))


def add_one(target: str) -> Rule:
    """A scale that is stored as its difference to 1."""
    return Rule((target,), lambda x: (1 + x.astype(np.promote_types(x.dtype, np.float32)),))


def one_minus(target: str) -> Rule:
    """A share of the one where we keep the share of the other, 1 - x."""
    return Rule((target,), lambda x: (1 - x.astype(np.promote_types(x.dtype, np.float32)),))


def matrix(target: str) -> Rule:
    """A projection [out, in], which we write [in, out]."""
    return Rule((target,), lambda x: (x.T,))


def ravel(target: str) -> Rule:
    """A vector, whatever axes of length 1 it has; heads and their channels become one axis."""
    return Rule((target,), lambda x: (x.reshape(-1),))


def conv_kernel(target: str) -> Rule:
    """The kernel [channels, 1, width] of a depthwise convolution, which we write [width, channels]; both have the latest last."""
    return Rule((target,), lambda x: (x[:, 0].T,))


def split(sizes: Sequence[int], *rules: Rule) -> Rule:
    """A tensor that holds several along its first axis, so many rows for each rule; ValueError if these do not add up."""
    targets = tuple(target for rule in rules for target in rule.targets)

    def make(x):
        if x.shape[0] != sum(sizes):
            raise ValueError(f"wanted {' + '.join(map(str, sizes))} = {sum(sizes)} rows")
        pieces = np.split(x, np.cumsum(sizes)[:-1])
        return [array for rule, piece in zip(rules, pieces, strict=True) for array in rule.make(piece)]

    return Rule(targets, make)


def interleaved(heads: int, *rules: Rule) -> Rule:
    """Several tensors whose rows are given head by head, [heads, rules, width of a head, ...]."""
    targets = tuple(target for rule in rules for target in rule.targets)

    def make(x):
        if x.shape[0] % (heads * len(rules)):
            raise ValueError(f"wanted rows for {heads} heads of {len(rules)} tensors")
        pieces = np.moveaxis(x.reshape(heads, len(rules), -1, *x.shape[1:]), 1, 0)
        return [array for rule, piece in zip(rules, pieces, strict=True) for array in rule.make(piece.reshape(-1, *x.shape[1:]))]

    return Rule(targets, make)


def joined(target: str, names: Sequence[str], make: Callable[[np.ndarray], np.ndarray]) -> dict[str, Rule]:
    """Several tensors that become one parameter: `make` gets them stacked; ValueError if their shapes differ."""
    rules = {name: Rule((), lambda x: ()) for name in names}
    return rules | {names[0]: Rule((target,), lambda *x: (make(np.stack(x)),), extra_inputs=tuple(names[1:]))}


def optional(rule: Rule) -> Rule:
    """A tensor that the file may lack because it would have no effect: zeros take its place."""
    return rule._replace(needed=False)


def without_effect() -> Rule:
    """Tables that the other project computes and stores as well: what they say is in other tensors or in config.json."""
    return Rule((), lambda x: (), needed=False)


def tied_to(name: str) -> Rule:
    """A copy of another tensor, such as a tied head, that the file may hold; it fills nothing, and must be equal."""
    return Rule((), lambda x: (), tied_to=name, needed=False)
