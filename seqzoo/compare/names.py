"""Short names of layers and settings: as much of a spec as tells it from the others that it stands beside."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seqzoo.compare.colours import FAMILIES
from seqzoo.specs import Spec, SpecError, parse, split

# Settings of mixers by which a state becomes larger or is divided.
SIZES = (
    *("heads", "key_heads", "kv_heads", "value_heads", "head_dim", "value_dim"),
    *("expand", "expand_k", "expand_v", "state", "slots", "feature_dim", "window"),
)

Layers = tuple[Spec | str, ...]  # of one label; a str is no spec


def short_names(many: Iterable[str]) -> dict[str, str]:
    """The shortest unambiguous name of each text of layers, such as "base_conv(conv_size=3), gla(heads=2)".

    A convolution that all have drops out, and so do settings, unless they tell apart two texts with the same mixers: then those
    stay that differ between them. A text that is no list of specs stays as it is. Different texts never get one name.
    """
    given = dict.fromkeys(many)
    layers = _without_shared_convolutions({text: _parsed(text) for text in given})
    groups: dict[tuple[str, ...], list[str]] = {}
    for text, parts in layers.items():
        groups.setdefault(tuple(part.name if isinstance(part, Spec) else part for part in parts), []).append(text)
    names = {text: _name(layers[text], _differing([layers[each] for each in group])) for group in groups.values() for text in group}
    taken = list(names.values())
    return {text: names[text] if taken.count(names[text]) == 1 else text for text in given}


def differing_settings(many: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The settings in which objects of settings differ, as {last part of the name: "part=value"}, one dict per object.

    A name whose last part another differing one shares is written in full.
    """
    names = list(dict.fromkeys(name for each in many for name in each))
    varied = [name for name in names if len({repr(each.get(name)) for each in many}) > 1]
    last = [name.rpartition(".")[2] for name in varied]
    short = {name: part if last.count(part) == 1 else name for name, part in zip(varied, last, strict=True)}
    return [{short[name]: f"{short[name]}={each[name]}" for name in varied if name in each} for each in many]


def without_sizes(text: str) -> str:
    """A text of layers without the settings that make a state larger. Of a window, which bounds a cache, `window=True` stays."""
    kept = lambda settings: ((name, value) for name, value in settings if name not in SIZES)
    bound = lambda settings: [("window", True)] if dict(settings).get("window") else []
    shorter = lambda part: Spec(part.name, (*kept(part.settings), *bound(part.settings)))
    return ", ".join(part if isinstance(part, str) else str(shorter(part)) for part in _parsed(text))


def _parsed(text: str) -> Layers:
    try:
        return tuple(map(parse, split(text)))
    except SpecError:
        return (text,)


def _without_shared_convolutions(layers: dict[str, Layers]) -> dict[str, Layers]:
    convolution = lambda part: isinstance(part, Spec) and part.name in FAMILIES["convolution"]
    shared = [part for part in next(iter(layers.values()), ()) if convolution(part) and all(part in x for x in layers.values())]
    kept = {text: tuple(part for part in parts if part not in shared) for text, parts in layers.items()}
    return kept if all(kept.values()) else layers


def _differing(group: Sequence[Layers]) -> list[set[str]]:
    """The settings in which layers of the same mixers differ, for each layer."""
    found = []
    for parts in zip(*group, strict=True):
        settings = [dict(part.settings) if isinstance(part, Spec) else {} for part in parts]
        names = {name for each in settings for name in each}
        found.append({name for name in names if len({repr(each[name]) if name in each else "" for each in settings}) > 1})
    return found


def _name(parts: Layers, shown: Sequence[set[str]]) -> str:
    short = (
        Spec(part.name, tuple((name, value) for name, value in part.settings if name in keep)) if isinstance(part, Spec) else part
        for part, keep in zip(parts, shown, strict=True)
    )
    return ", ".join(map(str, short))
