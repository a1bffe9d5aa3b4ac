"""The typed experiment: model, task, optimizer, training, mesh and run. Every setting is checked before anything is written.

A config file is Python that defines `config`, an `Experiment` or a `Comparison`; the command line overrides any field of it:
`--model.layers "gla(heads=2)"`. Both round-trip through JSON.
"""

from seqzoo.config.base import ConfigError, Section
from seqzoo.config.comparison import Comparison
from seqzoo.config.experiment import Experiment, difference, replace, settings
from seqzoo.config.files import Config, load_file, load_json
from seqzoo.config.generation import Generation
from seqzoo.config.mesh import Mesh
from seqzoo.config.model import DType, Model
from seqzoo.config.optimizer import Optimizer
from seqzoo.config.run import Run
from seqzoo.config.training import NUMERICALLY_NEUTRAL, Training

__all__ = [
    "NUMERICALLY_NEUTRAL",
    "Comparison",
    "Config",
    "ConfigError",
    "DType",
    "Experiment",
    "Generation",
    "Mesh",
    "Model",
    "Optimizer",
    "Run",
    "Section",
    "Training",
    "difference",
    "load_file",
    "load_json",
    "replace",
    "settings",
]
