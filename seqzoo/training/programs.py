"""The compiled programs of a run, and runs that share them."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding
from jax.stages import Compiled

from seqzoo.tasks.base import BatchSpec
from seqzoo.training.hyperparameters import shared_key
from seqzoo.training.state import State, TrainSetup, initialiser
from seqzoo.training.step import evaluator, step_function, train_step


class Program:
    """The functions that a run executes: initialisation, step, evaluation. They hold for every experiment with its `shared_key`.

    All functions take the run's `Hyperparameters`; a run that calls them with its own gets bitwise what it would get alone.
    """

    def __init__(self, setup: TrainSetup):
        self.setup = setup
        self.initialise = initialiser(setup)
        self.step = train_step(setup)
        self.compiled: dict[BatchSpec, Compiled] = {}
        self.evaluate = evaluator(setup)
        replicated = NamedSharding(setup.mesh, jax.P())
        self.finite = jax.jit(_all_finite, out_shardings=replicated)
        # Python numbers on all devices, still without a dtype of their own; `device_put` refuses them with several processes.
        self.replicate = jax.jit(lambda chosen: chosen, out_shardings=replicated)
        self._together: dict[int, Compiled] = {}

    def together(self, count: int) -> Compiled:
        """The compiled step of `count` runs, (states, hyperparameters) -> (states, metrics), each leaf with a leading axis of runs.

        The states are donated. All batches have the spec of the first step.
        """
        if count not in self._together:
            function, spec = step_function(self.setup), self.setup.task.spec(0)
            held = NamedSharding(self.setup.mesh, jax.P())
            stacked = lambda leaf: jax.ShapeDtypeStruct((count, *jnp.shape(leaf)), jnp.result_type(leaf), sharding=held)
            step = jax.jit(jax.vmap(lambda state, chosen: function(state, spec, None, chosen)), donate_argnums=0)
            arguments = jax.tree.map(stacked, (self.setup.abstract, self.setup.hyperparameters))
            self._together[count] = step.lower(*arguments).compile()
        return self._together[count]


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
