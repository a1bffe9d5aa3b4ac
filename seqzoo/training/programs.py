"""The compiled programs of a run, and runs that share them."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding
from jax.stages import Compiled

from seqzoo.tasks.base import BatchSpec
from seqzoo.training.hyperparameters import shared_key
from seqzoo.training.state import State, TrainSetup, initialiser
from seqzoo.training.step import evaluator, train_step


class Program:
    """What a run executes: initialisation, step, evaluation. It holds for every experiment with the same `shared_key`.

    All functions take the run's `Hyperparameters`; a run that calls them with its own gets bitwise what it would get alone.
    """

    def __init__(self, setup: TrainSetup):
        self.initialise = initialiser(setup)
        self.step = train_step(setup)
        self.compiled: dict[BatchSpec, Compiled] = {}
        self.evaluate = evaluator(setup)
        self.finite = jax.jit(_all_finite, out_shardings=NamedSharding(setup.mesh, jax.P()))


class Programs:
    """The programs of the runs of one process, by what they are compiled for: a new learning rate, weight decay or seed costs no
    compilation.

    The MOST latest stay in memory, so runs that share one should follow each other closely.
    """

    MOST = 8

    def __init__(self):
        self._found: dict[tuple, Program] = {}

    def of(self, setup: TrainSetup) -> Program:
        """The program for a run. One that writes its program out (run.dump_hlo) compiles it anew."""
        key = (shared_key(setup.experiment), setup.mesh)
        program = None if setup.experiment.run.dump_hlo else self._found.pop(key, None)
        self._found[key] = program = program or Program(setup)  # the last is the latest
        if len(self._found) > self.MOST:
            del self._found[next(iter(self._found))]
        return program


def _all_finite(tree: State) -> Array:
    """One boolean for all floating-point leaves."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
