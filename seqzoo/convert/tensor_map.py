"""Tensor maps: rules that turn a tensor of a file into parameters. A rule names its targets and makes one array for each."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """Rule for one tensor of the file, which becomes the parameters `targets`: dotted paths such as "mixer.x.w"."""

    targets: tuple[str, ...]
    make: Callable[..., Sequence[np.ndarray]]
    tied_to: str | None = None  # the tensor of which this one is a copy, if the file has it
    needed: bool = True  # False: if the file lacks it, its targets are zero
    extra_inputs: tuple[str, ...] = ()  # further tensors that `make` takes
    alias: str | None = None  # another name of the tensor


def copy(target: str) -> Rule:
    """Copies the tensor."""
    return Rule((target,), lambda x: (x,))


def add_one(target: str) -> Rule:
    """Adds 1, for a scale that is stored as its difference from 1."""
    return Rule((target,), lambda x: (1 + x.astype(np.promote_types(x.dtype, np.float32)),))


def one_minus(target: str) -> Rule:
    """1 - x, for an interpolation weight of the other end."""
    return Rule((target,), lambda x: (1 - x.astype(np.promote_types(x.dtype, np.float32)),))


def matrix(target: str) -> Rule:
    """Transposes a projection [out, in] to [in, out]."""
    return Rule((target,), lambda x: (x.T,))


def ravel(target: str) -> Rule:
    """Flattens to a vector: axes of length 1 go, heads and their channels become one axis."""
    return Rule((target,), lambda x: (x.reshape(-1),))


def conv_kernel(target: str) -> Rule:
    """Transposes the kernel [channels, 1, width] of a depthwise convolution to [width, channels]; the latest token is last."""
    return Rule((target,), lambda x: (x[:, 0].T,))


def split(sizes: Sequence[int], *rules: Rule) -> Rule:
    """Splits a tensor along its first axis into parts of these sizes, one per rule; ValueError if the sizes do not add up."""
    targets = tuple(target for rule in rules for target in rule.targets)

    def make(x):
        if x.shape[0] != sum(sizes):
            raise ValueError(f"wanted {' + '.join(map(str, sizes))} = {sum(sizes)} rows")
        pieces = np.split(x, np.cumsum(sizes)[:-1])
        return [array for rule, piece in zip(rules, pieces, strict=True) for array in rule.make(piece)]

    return Rule(targets, make)


def interleaved(heads: int, *rules: Rule) -> Rule:
    """Splits a tensor [heads, rules, width of a head, ...] into one tensor per rule."""
    targets = tuple(target for rule in rules for target in rule.targets)

    def make(x):
        if x.shape[0] % (heads * len(rules)):
            raise ValueError(f"wanted rows for {heads} heads of {len(rules)} tensors")
        pieces = np.moveaxis(x.reshape(heads, len(rules), -1, *x.shape[1:]), 1, 0)
        return [array for rule, piece in zip(rules, pieces, strict=True) for array in rule.make(piece.reshape(-1, *x.shape[1:]))]

    return Rule(targets, make)


def joined(target: str, names: Sequence[str], make: Callable[[np.ndarray], np.ndarray]) -> dict[str, Rule]:
    """Rules that join several tensors into one parameter: `make` gets them stacked; ValueError if their shapes differ."""
    rules = {name: Rule((), lambda x: ()) for name in names}
    return rules | {names[0]: Rule((target,), lambda *x: (make(np.stack(x)),), extra_inputs=tuple(names[1:]))}


def optional(rule: Rule) -> Rule:
    """Makes a tensor optional: if the file lacks it, its targets are zero, which has no effect."""
    return rule._replace(needed=False)


def without_effect() -> Rule:
    """A tensor that fills nothing: a stored table whose values follow from other tensors or from config.json."""
    return Rule((), lambda x: (), needed=False)


def tied_to(name: str) -> Rule:
    """A copy of another tensor, such as a tied head; it fills nothing, may be absent, and must be equal."""
    return Rule((), lambda x: (), tied_to=name, needed=False)
