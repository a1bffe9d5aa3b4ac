"""From settings to an optax transformation: guard [ accumulate [ clip, add noise, update rule ] ], times -learning rate."""

import functools
import math
import zlib

import jax
import optax
from flax import nnx
from jax import Array

from seqzoo import config
from seqzoo.model import params
from seqzoo.training.optim import gradient_accumulation, skip_nonfinite
from seqzoo.training.optim.adamp import scale_by_adamp
from seqzoo.training.optim.schedule import schedule

MOMENTUM = {"sgd": 0.9, "muon": 0.95}  # Sutskever et al. 2013; Jordan et al. 2024
MUON_RMS = 0.2  # Liu et al. 2025: the root mean square of AdamW's directions, so that both share rate and decay
ADAFACTOR_CLIP = 1.0  # Shazeer & Stern 2018, section 6


def make(settings: config.Optimizer, steps: int, parameters: nnx.State, seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """The optimizer. `update(gradient, state, parameters, value=loss)`; the loss is only for the guard. Where updates are made of
    several batches, also weight=tokens and step=n, for `gradient_accumulation.accumulate_gradients`.

        g      the gradient, or the mean of `batches` of them; over its global norm / clip_norm if that is above 1
        g      + N(0, noise / (1 + step)^noise_decay) on every number (Neelakantan et al. 2015, arXiv:1511.06807); behind the
               clipping, as the noise of many parameters would else be all that is left of a gradient
        u      rule(g) + weight_decay * w, the latter where decay_mask or decay_all says
        w      w - rate(step) * u

    With skip_limit all of it is inside `skip_nonfinite.skip_nonfinite`, but for the rate, which goes on with the steps of the run.
    A skipped step's noise is drawn again for the next.

    Where an update is made of several batches, a skipped one is none of them. Guard and rate go by steps, that is by batches;
    clipping, noise, moments and weight decay by updates. An update has the rate of the step it is made at, and no larger one for
    being of more batches.

    Args:
      settings: the section `optimizer`.
      steps: length of the run, where schedules end.
      parameters: the model's, values or abstract, with their metadata.
      seed: of the noise; the key of each step is kept in the state.
    """
    parts = [rule(settings, parameters)]
    if settings.noise:  # a key that nothing else is drawn from: the run's own is the seed's
        key = zlib.crc32(f"gradient noise {seed}".encode())
        parts.insert(0, optax.add_noise(settings.noise, settings.noise_decay, key))
    if settings.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
    direction = optax.chain(*parts)
    if settings.norm_test is not None or any(number > 1 for _, number in settings.numbers):
        direction = gradient_accumulation.accumulate_gradients(
            direction, settings.numbers, settings.norm_test, settings.max_accumulate_steps
        )
    if settings.skip_limit is not None:
        direction = skip_nonfinite.skip_nonfinite(direction, settings.skip_spikes)
    return optax.chain(direction, optax.scale_by_learning_rate(schedule(settings, steps)))


def rule(settings: config.Optimizer, parameters: nnx.State) -> optax.GradientTransformation:
    """The direction u of the step w - rate * u, weight decay included.

    m and v are running means of g and g^2 with the decays `betas` b1, b2, m^ and v^ the same over 1 - b^t, e is epsilon, d = weight
    decay * w where that acts and else 0. All norms are those of one parameter of one layer. Bytes: float32 state per parameter.

        adamw      m^ / (sqrt(v^) + e) + d                              8 bytes; Loshchilov & Hutter 2017, arXiv:1711.05101
        adamp      the same without its part along scale-invariant weights, + d     8 bytes; Heo et al. 2020, arXiv:2006.08217
        lamb       r |w| / |r|, r if w = 0, with r = AdamW's u          8 bytes; You et al. 2019, arXiv:1904.00962
        lion       sign(b1 m + (1 - b1) g) + d, then m = b2 m + (1 - b2) g          4 bytes; Chen et al. 2023, arXiv:2302.06675
        sgd        m + d, m = momentum m + g                            4 bytes
        adafactor  c rms(w) g / sqrt(v') + d                            Shazeer & Stern 2018, arXiv:1804.04235
                   v' from the means of g^2 over rows and over columns, where the two longest axes have 128 numbers or more: 4 bytes
                   per row and column, else 4 per parameter; decay 1 - t^-0.8; c caps the rms of g / sqrt(v') at 1; rms(w) is at
                   least 1e-3
        muon       0.2 sqrt(max(rows, columns)) O + d                   4 bytes; Jordan et al. 2024, Liu et al. 2025 (2502.16982)
                   O nearly the orthogonal matrix closest to the Nesterov momentum (five Newton-Schulz steps), for every matrix of
                   the blocks (`params.matrices`); all other parameters: AdamW's u, 8 bytes

    The default betas and epsilon are those of language models with AdamW. The papers have betas=(0.9, 0.999) for adamw, adamp and
    lamb (its epsilon is 1e-6), and for lion (0.9, 0.99), or (0.95, 0.98) where training is unstable, with a third to a tenth of
    AdamW's learning rate and as much more decay. Adafactor's learning rate is relative to rms(w): the paper's is at most 1e-2.
    Muon's is AdamW's.
    """
    mask = None if settings.decay_all else params.decay_mask(parameters)
    decay = optax.add_decayed_weights(settings.weight_decay, mask)
    layers = params.map_variables(lambda path, variable: params.axes(path, variable).count("layers"), parameters)
    momentum = MOMENTUM.get(settings.name) if settings.momentum is None else settings.momentum
    b1, b2 = settings.betas
    adam = optax.scale_by_adam(b1, b2, settings.epsilon)
    match settings.name:
        case "adamw":
            return optax.chain(adam, decay)
        case "adamp":
            return optax.chain(scale_by_adamp(b1, b2, settings.epsilon, params.map_variables(_views, parameters)), decay)
        case "lamb":
            return optax.chain(adam, decay, per_layer(optax.scale_by_trust_ratio(), layers))
        case "lion":
            return optax.chain(optax.scale_by_lion(b1, b2), decay)
        case "sgd":
            return optax.chain(optax.trace(momentum), decay)
        case "adafactor":
            scaled = optax.chain(optax.clip_by_block_rms(ADAFACTOR_CLIP), optax.scale_by_param_block_rms())
            return optax.chain(optax.scale_by_factored_rms(), per_layer(scaled, layers), decay)
        case "muon":
            labels = jax.tree.map(lambda matrix: "muon" if matrix else "adam", params.matrices(parameters))
            return optax.chain(optax.partition({"muon": _muon(momentum), "adam": adam}, labels), decay)


def per_layer(tx: optax.GradientTransformation, layers: dict) -> optax.GradientTransformation:
    """A stateless transformation of each parameter by itself, applied to every layer of stacked parameters by itself.

    `layers` is a tree like the parameters of how many leading axes are layers.
    """

    def update(updates, state, parameters=None):
        def one(update: Array, parameter: Array, depth: int) -> Array:
            alone = lambda u, w: tx.update(u, state, w)[0]
            return functools.reduce(lambda f, _: jax.vmap(f), range(depth), alone)(update, parameter)

        return jax.tree.map(one, updates, parameters, layers), state

    return optax.GradientTransformation(tx.init, update)


def _muon(momentum: float) -> optax.GradientTransformation:
    """Muon on the last two axes of every parameter, its direction's root mean square MUON_RMS."""
    last_two = optax.contrib.MuonDimensionNumbers(-2, -1)
    dimensions = lambda updates: jax.tree.map(lambda _: last_two, updates)
    scale = lambda update, _: MUON_RMS * math.sqrt(max(update.shape[-2:])) * update
    return optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=dimensions), optax.stateless_with_tree_map(scale)
    )


def _views(path: str, variable: nnx.Param) -> tuple[tuple[int, ...], ...]:
    """What AdamP takes for one weight vector: what makes an output channel, or a token's embedding; then the whole matrix."""
    own = params.own_axes(path, variable)
    if len(own) < 2:
        return ()
    return (-1,) if own[0] == "vocab" else (-2,), tuple(range(-len(own), 0))
