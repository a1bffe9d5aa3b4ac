"""Configs from files: JSON, and Python files that define `config`."""

import json
import runpy
from pathlib import Path

from seqzoo import plugins
from seqzoo.config.base import ConfigError
from seqzoo.config.comparison import Comparison
from seqzoo.config.experiment import Experiment
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
        data = json.loads(path.read_bytes())
        kind, base = (Comparison, data["base"]) if "axes" in data else (Experiment, data)
        plugins.refuse_inside(path.parent, base.get("imports", ()))
        return kind(**data)
    except plugins.PluginError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is damaged: wanted the JSON of a config, found {error}") from None


def load_file(path: str | Path) -> Config:
    """The `config` of a Python file, which is executed."""
    path = Path(path)
    if not path.is_file():
        beside = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"there is no config file {path}.{did_you_mean(str(path), beside)}")
    config = runpy.run_path(str(path)).get("config")
    if not isinstance(config, Experiment | Comparison):
        raise ConfigError(f"{path} defines config={config!r}; wanted config = Experiment(...) or config = Comparison(...)")
    return config
