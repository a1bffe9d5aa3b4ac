"""Configs read back: from JSON, and from the Python files that define them."""

import json
import runpy
from pathlib import Path

from seqzoo.config.base import ConfigError
from seqzoo.config.comparison import Comparison
from seqzoo.config.experiment import Experiment
from seqzoo.specs import did_you_mean

Config = Experiment | Comparison


def load_json(path: Path) -> Config:
    """Reads a config.json."""
    data = json.loads(Path(path).read_text())
    return (Comparison if "axes" in data else Experiment)(**data)


def load_file(path: str | Path) -> Config:
    """The `config` that a Python file defines."""
    path = Path(path)
    if not path.is_file():
        beside = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"there is no config file {path}.{did_you_mean(str(path), beside)}")
    config = runpy.run_path(str(path)).get("config")
    if not isinstance(config, Experiment | Comparison):
        raise ConfigError(f"{path} defines config={config!r}; wanted config = Experiment(...) or config = Comparison(...)")
    return config
