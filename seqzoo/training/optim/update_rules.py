"""Update rules: the direction u of the update w <- w - learning_rate u, from the gradient g.

Each rule is a class with its settings, chosen by a spec string, `optimizer.rule="adamw(weight_decay=0.1, b2=0.999)"`:

    adamw      Adam with decoupled weight decay
    adamp      AdamW without the part of a step along scale-invariant weights
    lamb       AdamW's direction at the length of each parameter
    lion       the sign of a momentum
    sgd        gradient descent with momentum
    adafactor  a second moment of rows and columns only; steps relative to the size of each parameter
    muon       nearly orthogonal momentum for the matrices of the blocks, AdamW for all else

In the formulas m and v are running means of g and g^2 with decays b1 and b2, m^ and v^ the same over 1 - b^t at step t, and d is
weight_decay * w where weight decay acts, else 0. All norms are those of one parameter of one layer. Bytes are those of float32
state per parameter. A rule of your own is a function:

    @optim.register("sign_sgd")
    def sign_sgd(weight_decay: float = 0.0) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_sign(), optax.add_decayed_weights(weight_decay))
"""

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax
import optax
from flax import nnx
from jax import Array

from seqzoo.model import params
from seqzoo.specs import NonNegative, Positive, Rate, Registry, Settings
from seqzoo.training.optim.adamp import scale_by_adamp
from seqzoo.training.optim.functions import FunctionSettings, settings_of_function

ADAFACTOR_CLIP = 1.0  # largest root mean square of a scaled gradient; Shazeer & Stern 2018
MUON_RMS = 0.2  # root mean square of Muon's direction, that of AdamW's; Liu et al. 2025, arXiv:2502.16982

Rule = TypeVar("Rule", bound=Callable[..., Any])

registry = Registry("update rule")


def register(name: str) -> Callable[[Rule], Rule]:
    """Decorator that enrols an update rule: a subclass of `UpdateRule`, or a function that returns an optax transformation.

    The transformation gives the direction u, as `optax.scale_by_adam` does: the trainer multiplies it by minus the learning rate.
    The arguments of the function are the settings of the rule, typed by their annotations; one called `parameters` gets the
    parameters of the model, an `nnx.State` of abstract values with metadata (`seqzoo.model.params` makes masks of it).
    """

    def enrol(rule: Rule) -> Rule:
        owner: Any = rule
        registry.register(name)(owner if isinstance(owner, type) else settings_of_function(owner, FunctionRule))
        return rule

    return enrol


class FunctionRule(FunctionSettings):
    """An update rule that is a function of its settings."""

    reserved = ("parameters",)

    def transformation(self, parameters: nnx.State) -> optax.GradientTransformation:
        """The function's transformation."""
        return self.call(parameters=parameters)


class UpdateRule(Settings):
    """An update rule with its settings."""

    weight_decay: NonNegative = 0.1
    """Decoupled weight decay: multiplied by the learning rate, not part of the gradient."""
    decay_all: bool = False
    """Decays all parameters. If False, only matrices, except those that a mixer marks with decay=False."""

    def transformation(self, parameters: nnx.State) -> optax.GradientTransformation:
        """The optax transformation from g to u, weight decay included.

        Args:
          parameters: the model's, values or abstract, with their metadata.
        """
        raise NotImplementedError

    def decay(self, parameters: nnx.State) -> optax.GradientTransformation:
        """Adds d."""
        return optax.add_decayed_weights(self.weight_decay, None if self.decay_all else params.decay_mask(parameters))


class _Adam(UpdateRule):
    """Settings of the rules that use Adam's direction."""

    b1: Rate = 0.9
    """Decay of the running mean of the gradient."""
    b2: Rate = 0.95
    """Decay of the running mean of its square. Published for Adam: 0.999; usual for language models: 0.95."""
    eps: Positive = 1e-8
    """Epsilon added to the root of the mean square."""

    def adam(self) -> optax.GradientTransformation:
        """m^ / (sqrt(v^) + eps)."""
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@register("adamw")
class AdamW(_Adam):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101).

        u = m^ / (sqrt(v^) + eps) + d

    State: 8 bytes.
    """

    def transformation(self, parameters):
        return optax.chain(self.adam(), self.decay(parameters))


@register("adamp")
class AdamP(_Adam):
    """AdamP (Heo et al. 2020, arXiv:2006.08217): no step lengthens weights whose length the loss does not depend on.

        p = m^ / (sqrt(v^) + eps)
        u = q + d    q = p without its part along scale-invariant weights; see `scale_by_adamp`

    State: 8 bytes.
    """

    def transformation(self, parameters):
        views = params.map_variables(lambda path, variable: _adamp_views(params.own_axes(path, variable)), parameters)
        return optax.chain(scale_by_adamp(self.b1, self.b2, self.eps, views), self.decay(parameters))


@register("lamb")
class Lamb(_Adam):
    """LAMB (You et al. 2019, arXiv:1904.00962). Published: b2=0.999, eps=1e-6.

        r = m^ / (sqrt(v^) + eps) + d
        u = r |w| / |r|    u = r if w = 0

    State: 8 bytes.
    """

    def transformation(self, parameters):
        return optax.chain(self.adam(), self.decay(parameters), per_layer(optax.scale_by_trust_ratio(), parameters))


@register("lion")
class Lion(UpdateRule):
    """Lion (Chen et al. 2023, arXiv:2302.06675).

        u = sign(b1 m + (1 - b1) g) + d    then m = b2 m + (1 - b2) g

    Published: b2=0.99, or b1=0.95, b2=0.98 where training is unstable; a third to a tenth of AdamW's learning rate, and as much
    more weight decay. State: 4 bytes.
    """

    b1: Rate = 0.9
    """Weight of the momentum in a step."""
    b2: Rate = 0.95
    """Decay of the momentum."""

    def transformation(self, parameters):
        return optax.chain(optax.scale_by_lion(self.b1, self.b2), self.decay(parameters))


@register("sgd")
class SGD(UpdateRule):
    """Stochastic gradient descent with momentum (Polyak 1964, doi:10.1016/0041-5553(64)90137-5).

        m = momentum m + g
        u = m + d

    State: 4 bytes.
    """

    momentum: Rate = 0.9
    """Decay of the running sum of the gradient."""

    def transformation(self, parameters):
        return optax.chain(optax.trace(self.momentum), self.decay(parameters))


@register("adafactor")
class Adafactor(UpdateRule):
    """Adafactor without momentum (Shazeer & Stern 2018, arXiv:1804.04235).

        u = c rms(w) g / sqrt(v') + d    rms(w) at least 1e-3; c caps the rms of g / sqrt(v') at 1

    v' is made of the means of g^2 over rows and over columns where the two longest axes have 128 numbers or more: 4 bytes per row
    and column; else it is a running mean: 4 bytes per parameter. Its decay at step t is 1 - t^-0.8. The learning rate is relative
    to the size of each parameter: the paper's is at most 1e-2.
    """

    def transformation(self, parameters):
        scaled = optax.chain(optax.clip_by_block_rms(ADAFACTOR_CLIP), optax.scale_by_param_block_rms())
        return optax.chain(optax.scale_by_factored_rms(), per_layer(scaled, parameters), self.decay(parameters))


@register("muon")
class Muon(_Adam):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), scaled to AdamW's steps (Liu et al. 2025, arXiv:2502.16982).

        u = 0.2 sqrt(max(rows, columns)) O + d    for every matrix of the blocks (`seqzoo.model.params.matrices`)
        u = m^ / (sqrt(v^) + eps) + d             for all other parameters

    O is nearly the orthogonal matrix closest to the Nesterov momentum: five Newton-Schulz steps. The learning rate is AdamW's.
    State: 4 bytes of matrices, 8 of the others.
    """

    momentum: Rate = 0.95
    """Decay of the running mean of the gradient of matrices."""

    def transformation(self, parameters):
        labels = jax.tree.map(lambda matrix: "muon" if matrix else "adam", params.matrices(parameters))
        parts: dict[Hashable, optax.GradientTransformation] = {"muon": scale_by_muon(self.momentum), "adam": self.adam()}
        return optax.chain(optax.partition(parts, labels), self.decay(parameters))


def per_layer(tx: optax.GradientTransformation, parameters: nnx.State) -> optax.GradientTransformation:
    """A stateless transformation of each parameter separately, and of every layer of stacked parameters separately."""
    layers = params.map_variables(lambda path, variable: params.axes(path, variable).count("layers"), parameters)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(update: Array, parameter: Array, depth: int) -> Any:
            alone = lambda u, w: tx.update(u, state, w)[0]
            return functools.reduce(lambda f, _: jax.vmap(f), range(depth), alone)(update, parameter)

        return jax.tree.map(one, updates, params, layers), state

    return optax.GradientTransformation(tx.init, update)


def scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Muon on the last two axes of every parameter, at a root mean square of MUON_RMS."""
    last_two = optax.contrib.MuonDimensionNumbers(-2, -1)
    dimensions = lambda updates: jax.tree.map(lambda _: last_two, updates)
    scale = lambda update, _: MUON_RMS * math.sqrt(max(update.shape[-2:])) * update
    return optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=dimensions), optax.stateless_with_tree_map(scale)
    )


def _adamp_views(own: tuple[str | None, ...]) -> tuple[tuple[int, ...], ...]:
    """Axes of one weight vector for AdamP: those of an output channel, or of a token's embedding; then those of the matrix."""
    if len(own) < 2:
        return ()
    return (-1,) if own[0] == "vocab" else (-2,), tuple(range(-len(own), 0))
