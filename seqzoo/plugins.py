"""Modules of other projects that register mixers, channel mixers, tasks and the like.

    Experiment(imports=("my_mixers",), model=Model(layers=("my_mixer(heads=4)",)))

`Experiment.imports` names modules; they are imported before any spec is checked, and a run folder remembers their names. An
installed package can instead declare an entry point in the group `seqzoo.plugins`, whose value is a module:

    [project.entry-points."seqzoo.plugins"]
    my_mixers = "my_package.mixers"

Entry points are imported when a name is looked up that is not registered yet, and by `train.py help`. A run folder holds no code:
importing takes modules from the Python path of the process and from nowhere else.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path

GROUP = "seqzoo.plugins"

_skipped: ContextVar[bool] = ContextVar("skipped", default=False)
_loaded: set[str] = set()  # entry points that were imported, as "name = value"


class PluginError(ValueError):
    """A module that cannot be imported. One line: the module, where it is named, the reason, the setting to change."""


def import_modules(names: Iterable[str]) -> None:
    """Imports the modules that `Experiment.imports` names; does nothing inside `skip_imports`.

    Raises:
      PluginError: a name is not a module name, or its module cannot be imported.
    """
    for name in names:
        if not re.fullmatch(r"\w+(\.\w+)*", name):
            raise PluginError(f"{name!r} is not a module name; wanted a dotted name such as 'my_mixers' or 'my_package.mixers'")
        if not _skipped.get():
            try:
                importlib.import_module(name)
            except Exception as error:  # a module of another project may raise anything
                raise PluginError(
                    f"the module {name!r} cannot be imported ({_reason(error)}); wanted a module on the Python path, as by "
                    f"PYTHONPATH=FOLDER; inspect, plot and report read a run without it with --no-imports"
                ) from error


def refuse_inside(folder: Path, names: Iterable[str]) -> None:
    """Raises PluginError if one of the modules would be taken from a folder, whose files are data and are not executed."""
    for name in names:
        found = None if skipping() else importlib.util.find_spec(str(name).partition(".")[0])
        if found and found.origin and Path(found.origin).resolve().is_relative_to(folder.resolve()):
            raise PluginError(f"the module {name!r} is inside the run folder {folder}; wanted one outside of it, or --no-imports")


def import_entry_points() -> bool:
    """Imports the entry points of the group `seqzoo.plugins` that were not imported yet; returns whether there were any.

    Raises:
      PluginError: an entry point cannot be imported.
    """
    found = False
    for point in () if _skipped.get() else importlib.metadata.entry_points(group=GROUP):
        if (key := f"{point.name} = {point.value}") in _loaded:
            continue
        _loaded.add(key)  # also if it fails: the second attempt of a module that registers names would fail in another way
        try:
            point.load()
        except Exception as error:
            package = f" of the package {point.dist.name}" if point.dist else ""
            raise PluginError(
                f"the entry point {key!r}{package} in the group {GROUP!r} cannot be imported ({_reason(error)}); "
                f"repair or uninstall the package"
            ) from error
        found = True
    return found


@contextlib.contextmanager
def skip_imports() -> Iterator[None]:
    """Context in which configs are read without importing modules, and names that are not registered are not refused."""
    token = _skipped.set(True)
    try:
        yield
    finally:
        _skipped.reset(token)


def skipping() -> bool:
    """True inside `skip_imports`."""
    return _skipped.get()


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
