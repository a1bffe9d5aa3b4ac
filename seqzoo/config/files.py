"""Configs from files: JSON, and Python files that define `config`."""

import runpy
import traceback
from pathlib import Path

from seqzoo import plugins
from seqzoo.config.base import ConfigError
from seqzoo.config.comparison import Comparison
from seqzoo.config.experiment import Experiment
from seqzoo.data.json_files import DamagedFile, read_json
from seqzoo.specs import did_you_mean

Config = Experiment | Comparison


def load_json(path: str | Path) -> Config:
    """The config in a config.json, whose `imports` are imported.

    Raises:
      ConfigError: the file is damaged, a setting is wrong, or one of `imports` would be taken from the folder of the file: a run
        folder may come from a stranger, and nothing in it is executed.
    """
    path = Path(path)
    try:
        data = read_json(path)
        kind, base = (Comparison, data["base"]) if "axes" in data else (Experiment, data)
        plugins.refuse_inside(path.parent, base.get("imports", ()))
        return kind(**data)
    except plugins.PluginError as error:
        raise ConfigError(f"{path}: {error}") from error
    except DamagedFile:
        raise
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: wanted the JSON of a config, found {error}") from None


def _place(path: Path, error: Exception) -> str:
    """The line of a config file that raised an error: "configs/mine.py, line 3"."""
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    number = error.lineno if isinstance(error, SyntaxError) else own[-1] if own else None
    return f"{path}, line {number}" if number else str(path)


def load_file(path: str | Path) -> Config:
    """The `config` of a Python file, which is executed."""
    path = Path(path)
    if not path.is_file():
        beside = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"there is no config file {path}.{did_you_mean(str(path), beside)}")
    try:
        config = runpy.run_path(str(path)).get("config")
    except ConfigError:
        raise
    except Exception as error:  # any: the file is a program of the user
        raise ConfigError(f"{_place(path, error)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Experiment | Comparison):
        raise ConfigError(f"{path} defines config={config!r}; wanted config = Experiment(...) or config = Comparison(...)")
    return config
