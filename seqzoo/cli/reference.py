"""Reference of everything that a spec can name: description, settings with types, ranges and defaults, and source.

`train.py help NAME` prints it, and docs/reference.md is generated from it.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from seqzoo import channels, mixers, tasks
from seqzoo.specs import Help, Registry, settings_help
from seqzoo.training.optim import gradient_accumulation, schedules, update_rules

REGISTRIES: Mapping[str, Registry] = {
    part.registry.kind: part.registry for part in (mixers, channels, tasks, update_rules, schedules, gradient_accumulation)
}


class Entry(NamedTuple):
    """One registered class in words."""

    kind: str  # "mixer", "channel mixer", "task" ...
    name: str  # in specs
    summary: str  # first paragraph of the docstring
    text: str  # the rest of the docstring
    settings: tuple[Help, ...]
    source: str  # dotted path of the class

    @property
    def defaults(self) -> str:
        """The spec with all settings: "gla(heads=4, expand_k=0.5, ...)"; "..." for a value that is required."""
        given = ", ".join(f"{each.name}={default_in_words(each)}" for each in self.settings)
        return f"{self.name}({given})" if given else self.name


def default_in_words(setting: Help) -> str:
    """The default as a literal of a spec, "..." for a required value."""
    return "..." if setting.default is ... else repr(setting.default)


def entry(registry: Registry, name: str) -> Entry:
    """The entry of one name; SpecError for an unknown one."""
    owner: Any = registry.get(name)
    summary, _, text = (inspect.getdoc(owner) or "").partition("\n\n")
    source = f"{owner.__module__}.{owner.__qualname__}"
    return Entry(registry.kind, name, " ".join(summary.split()), text.rstrip(), tuple(settings_help(owner)), source)


def entries(name: str | None = None) -> Iterator[Entry]:
    """All entries, or those of one name, which may belong to several kinds; by kind, in the order of registration."""
    for registry in REGISTRIES.values():
        for each in registry.names():
            if name in (None, each):
                yield entry(registry, each)
