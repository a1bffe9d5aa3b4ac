"""The instrument of the law: one mixer, run forward and pulled back, whole or step by step, in float32 or float64."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqzoo import mixers

BATCH, LENGTH, WIDTH = 2, 44, 32
# Row 0: leading, interior and trailing padding, documents of 1, 2 and more tokens, an id that comes back, a document that goes on
# behind padding. Row 1 continues the carried document 5 and then starts another.
IDS = np.array(
    [
        [0] * 2 + [1] * 5 + [2] + [1] * 2 + [0] * 3 + [1] * 4 + [3] * 20 + [0] + [4] * 5 + [0],
        [5] * 20 + [8] * 24,
    ],
    np.int32,
)
DOCUMENTS = [
    (0, 2, 7),
    (0, 7, 8),
    (0, 8, 17),
    (0, 17, 37),
    (0, 38, 43),
    (1, 20, 44),
]  # (row, first, after the last); none is carried in


class Pulled(NamedTuple):
    """Results of a run: outputs, final state, and the gradients of <dy, y> + <dstate, state'>."""

    y: Any
    state: Any
    params: Any
    x: Any
    carried: Any  # gradients of the initial state's float leaves


class Subject:
    """A mixer under test, with every weight perturbed so that no zero of its initialisation hides a term."""

    def __init__(self, spec: str):
        self.spec = spec
        self.graphdef, params = nnx.split(mixers.create(spec, WIDTH, rngs=nnx.Rngs(0)))
        leaves, tree = jax.tree.flatten(params)
        noise = np.random.default_rng(1)
        leaves = [leaf + 0.1 * noise.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
        self.params = jax.tree.unflatten(tree, leaves)
        self.whole = jax.jit(functools.partial(self._pull, self._whole))
        # Under a mesh, optimised as for users: otherwise LLVM adds one number after the other, and the gradient of Mamba-2's skip
        # is a single sum of 5,632 that nearly cancel.
        options = {"xla_backend_optimization_level": 3}
        self.placed = jax.jit(functools.partial(self._pull, self._whole), compiler_options=options)
        self._stepwise = jax.jit(functools.partial(self._pull, self._steps))

    def _whole(self, params, state, x, ids):
        return nnx.merge(self.graphdef, params)(x, state=state, segment_ids=ids)

    def _steps(self, params, state, x, ids):
        def step(state, token):
            y, state = self._whole(params, state, token[0][:, None], token[1][:, None])
            return state, y[:, 0]

        state, y = jax.lax.scan(step, state, (jnp.moveaxis(x, 1, 0), ids.T))
        return jnp.moveaxis(y, 0, 1), state

    def _pull(self, run, params, state, x, ids, dy, dstate):
        floats, rebuild = split_floats(state)

        def forward(params, x, floats):
            y, new = run(params, rebuild(floats), x, ids)
            return (y, split_floats(new)[0]), new

        (y, _), back, new = jax.vjp(forward, params, x, floats, has_aux=True)
        return Pulled(y, new, *back((dy, dstate)))

    def stepwise(self, state, x, ids, dy, dstate) -> Pulled:
        """The definition: one token after the other, in float64."""
        with jax.enable_x64(True):
            wide = functools.partial(jax.tree.map, to_float64)
            result = self._stepwise(wide(self.params), wide(state), wide(x), jnp.asarray(ids), wide(dy), wide(dstate))
            for leaf in jax.tree.leaves((result.y, result.params, result.x, split_floats(result.state)[0])):
                assert leaf.dtype == jnp.float64, f"{self.spec}: float64 in, {leaf.dtype} out"
            return jax.tree.map(np.asarray, result)

    def empty(self, batch: int = BATCH):
        """The empty state."""
        return nnx.merge(self.graphdef, self.params).init_state(batch, 2 * LENGTH)

    def random(self, seed: int):
        """(x, dy, dstate), standard normal."""
        noise = np.random.default_rng(seed)
        draw = lambda shape: jnp.asarray(noise.standard_normal(shape), jnp.float32)
        return (
            draw((BATCH, LENGTH, WIDTH)),
            draw((BATCH, LENGTH, WIDTH)),
            jax.tree.map(lambda leaf: draw(leaf.shape), split_floats(self.empty())[0]),
        )

    @functools.cached_property
    def carried(self):
        """A state that has something to carry: that after 44 tokens of document 5, in float64 and exact in float32."""
        x, dy, dstate = self.random(2)
        state = self.stepwise(self.empty(), x, np.full((BATCH, LENGTH), 5, np.int32), dy, dstate).state
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, to_float32(leaf)), state)

    @functools.cached_property
    def packed(self) -> Pulled:
        """The packed rows of IDS behind the carried state, whole, in float32."""
        x, dy, dstate = self.random(3)
        return self.whole(self.params, self.carried, x, jnp.asarray(IDS), dy, dstate)


@functools.cache
def subject(spec: str) -> Subject:
    """The subject of a spec; tests share what it compiles."""
    return Subject(spec)


def split_floats(tree):
    """(the float leaves, a function that puts others in their place)."""
    leaves, treedef = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def rebuild(floats):
        floats = iter(floats)
        return jax.tree.unflatten(treedef, [next(floats) if f else leaf for leaf, f in zip(leaves, is_float, strict=True)])

    return [leaf for leaf, f in zip(leaves, is_float, strict=True) if f], rebuild


def to_float64(leaf):
    return jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.asarray(leaf)


def to_float32(leaf):
    return jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype


def place(tokens, at: int):
    """tokens [b, n, ...] at row `at` of an otherwise zero [b, LENGTH, ...]: one shape for pieces of every length."""
    empty = np.zeros((tokens.shape[0], LENGTH, *tokens.shape[2:]), tokens.dtype)
    empty[:, at : at + tokens.shape[1]] = tokens
    return jnp.asarray(empty)


def dots(jaxpr) -> int:
    """Multiply-adds x 2 of all matrix products in a jaxpr, trip counts of scans multiplied."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            contracted = [equation.invars[0].aval.shape[axis] for axis in contract]
            total += 2 * int(np.prod(equation.outvars[0].aval.shape, dtype=int) * np.prod(contracted, dtype=int))
        inner = sum(dots(sub) for value in equation.params.values() for sub in _jaxprs(value))
        total += inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


def _jaxprs(value):
    if isinstance(value, jax.extend.core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, jax.extend.core.Jaxpr):
        return [value]
    return [jaxpr for item in value for jaxpr in _jaxprs(item)] if isinstance(value, (tuple, list)) else []
