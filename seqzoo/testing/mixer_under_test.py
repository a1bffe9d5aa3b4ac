"""A mixer and its two compiled forms: whole in float32, and one token after the other in float64."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqzoo import mixers
from seqzoo.mixers.base import Mixer
from seqzoo.specs import Settings, Spec, spec_name

BATCH, LENGTH = 2, 44
# Row 0: leading, interior and trailing padding, documents of 1, 2 and more tokens, an id that comes back, a document that continues
# after padding. Row 1 continues the document 5 of the initial state and then starts another.
SEGMENT_IDS = np.array(
    [
        [0] * 2 + [1] * 5 + [2] + [1] * 2 + [0] * 3 + [1] * 4 + [3] * 20 + [0] + [4] * 5 + [0],
        [5] * 20 + [8] * 24,
    ],
    np.int32,
)
REAL = (SEGMENT_IDS != 0)[..., None]


class Run(NamedTuple):
    """One run of a mixer: outputs, final state, and the gradients of <dy, y> + <dstate, state'>."""

    y: Any
    state: Any
    params: Any
    x: Any
    initial_state: Any  # gradients of its float leaves


class MixerUnderTest:
    """A mixer and its two compiled forms; every parameter is perturbed, so that no zero of the initialisation hides a term."""

    def __init__(self, mixer: str | Spec | Settings | type[Mixer], d_model: int = 32, seed: int = 0):
        if isinstance(mixer, type) and issubclass(mixer, Mixer):
            self.factory, self.settings, self.name = mixer, {}, spec_name(mixer)
        else:
            spec = mixers.registry.check(mixer)
            self.factory, self.settings, self.name = mixers.registry.get(spec.name), dict(spec.settings), str(spec)
        self.d_model, self.seed = d_model, seed
        self.graphdef, params = nnx.split(self.create())
        noise = np.random.default_rng(seed + 1)
        self.params = jax.tree.map(lambda leaf: leaf + 0.1 * noise.standard_normal(leaf.shape).astype(np.float32), params)
        self.traced = 0  # times that `run` was traced, and so compiled
        self.run = jax.jit(self._whole)
        self._definition = jax.jit(functools.partial(self.with_gradients, self._step_by_step))

    def create(self, **others: Any) -> Mixer:
        """The mixer with its initial parameters; `others` are a dtype, and settings in place of its own."""
        return self.factory(self.d_model, rngs=nnx.Rngs(self.seed), **{**self.settings, **others})

    def __str__(self) -> str:
        return f"{self.name} (d_model {self.d_model}, seed {self.seed}, rows {BATCH} x {LENGTH})"

    @property
    def mixer(self) -> Mixer:
        return nnx.merge(self.graphdef, self.params)

    def forward(self, params, state, x, segment_ids):
        """(y, final state)."""
        return nnx.merge(self.graphdef, params)(x, state=state, segment_ids=segment_ids)

    def _whole(self, *arguments):
        self.traced += 1
        return self.with_gradients(self.forward, *arguments)

    def _step_by_step(self, params, state, x, segment_ids):
        def step(state, token):
            y, state = self.forward(params, state, token[0][:, None], token[1][:, None])
            return state, y[:, 0]

        state, y = jax.lax.scan(step, state, (jnp.moveaxis(x, 1, 0), segment_ids.T))
        return jnp.moveaxis(y, 0, 1), state

    def with_gradients(self, forward, params, state, x, segment_ids, dy, dstate) -> Run:
        """Runs a form of the mixer and pulls dy and dstate back through it."""
        floats, rebuild = split_floats(state)

        def run(params, x, floats):
            y, new = forward(params, rebuild(floats), x, segment_ids)
            return (y, split_floats(new)[0]), new

        (y, _), pull, new = jax.vjp(run, params, x, floats, has_aux=True)
        return Run(y, new, *pull((dy, dstate)))

    def definition(self, state, x, segment_ids, dy, dstate, params=None) -> Run:
        """One token after the other, in float64; with other parameters if they are given."""
        with jax.enable_x64(True):
            wide = functools.partial(jax.tree.map, _to_float64)
            result = self._definition(
                wide(self.params if params is None else params),
                wide(state),
                wide(x),
                jnp.asarray(segment_ids),
                wide(dy),
                wide(dstate),
            )
            for leaf in jax.tree.leaves((result.y, result.params, result.x, split_floats(result.state)[0])):
                assert leaf.dtype == jnp.float64, f"{self}: float64 in, {leaf.dtype} out"
            return jax.tree.map(np.asarray, result)

    def empty_state(self, batch: int = BATCH):
        """The state before the first token, with room for twice the rows' length."""
        return self.mixer.init_state(batch, 2 * LENGTH)

    def inputs(self, seed: int):
        """(x, dy, dstate), standard normal."""
        noise = np.random.default_rng(1000 * self.seed + seed)
        draw = lambda shape: noise.standard_normal(shape).astype(np.float32)
        shape = (BATCH, LENGTH, self.d_model)
        return draw(shape), draw(shape), [draw(leaf.shape) for leaf in split_floats(self.empty_state())[0]]

    @functools.cached_property
    def state(self):
        """The state after 44 tokens of document 5, found in float64; its float32 numbers are what every check starts from."""
        x, dy, dstate = self.inputs(2)
        state = self.definition(self.empty_state(), x, np.full((BATCH, LENGTH), 5, np.int32), dy, dstate).state
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32 if _is_float(leaf) else leaf.dtype), state)

    @functools.cached_property
    def packed(self) -> Run:
        """The rows of SEGMENT_IDS after `state`, whole, in float32."""
        x, dy, dstate = self.inputs(3)
        return self(self.state, x, SEGMENT_IDS, dy, dstate)

    def __call__(self, state, x, segment_ids, dy, dstate) -> Run:
        """Whole, in float32; every array as NumPy's."""
        return jax.tree.map(np.asarray, self.run(self.params, state, x, segment_ids, dy, dstate))


def rounded(tree: Any, seed: int) -> Any:
    """The tree with every float32 number replaced by one of its two neighbours."""
    noise = np.random.default_rng(seed)

    def neighbour(leaf):
        leaf = np.asarray(leaf)
        return (
            np.nextafter(leaf, np.copysign(np.float32(np.inf), noise.random(leaf.shape) - 0.5, dtype=np.float32))
            if _is_float(leaf)
            else leaf
        )

    return jax.tree.map(neighbour, tree)


def split_floats(tree: Any) -> tuple[list, Callable[[Any], Any]]:
    """(the float leaves, a function that puts others in their place)."""
    leaves, treedef = jax.tree.flatten(tree)

    def rebuild(floats):
        floats = iter(floats)
        return jax.tree.unflatten(treedef, [next(floats) if _is_float(leaf) else leaf for leaf in leaves])

    return [leaf for leaf in leaves if _is_float(leaf)], rebuild


def _is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _to_float64(leaf):
    return np.asarray(leaf, np.float64) if _is_float(leaf) else np.asarray(leaf)
