"""Loading a checkpoint into a model: every tensor is used once, every parameter is filled, and shapes agree."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqzoo import mixers
from seqzoo.convert.architecture import ModelMapping, model_mapping
from seqzoo.convert.checkpoint import FLOATS, SHOWN, Checkpoint, ConvertError
from seqzoo.convert.tensor_map import Rule
from seqzoo.model import LanguageModel, params

Built = TypeVar("Built", bound=nnx.Module)


def settings(folder: str | Path) -> dict[str, Any]:
    """Settings of `LanguageModel` for the model in a checkpoint folder, `vocab_size` and `d_model` among them. Reads no tensor.

    Raises ConvertError, as `load`.
    """
    made = model_mapping(Checkpoint(folder).config)
    if made.refused:
        raise ConvertError(made.refused)
    return dict(made.model)


def load(folder: str | Path, *, dtype: Any = None, param_dtype: Any = jnp.float32) -> LanguageModel:
    """The language model in a checkpoint folder of Hugging Face's layout.

    Args:
      folder: holds config.json and model.safetensors, or several files with model.safetensors.index.json.
      dtype: of the computation; None: param_dtype. The residual stream is float32 if the settings of the checkpoint say so.
      param_dtype: of the parameters, for any dtype in the file.
    Returns:
      A `LanguageModel`; `model(tokens)` gives the logits of the original project.
    Raises:
      ConvertError: a tensor or setting is missing, unused, damaged, of another shape, or not supported; the message lists it.
      ImportError: safetensors is not installed.
    """
    with Checkpoint(folder) as checkpoint:
        made = model_mapping(checkpoint.config)
        if made.refused:
            raise ConvertError(made.refused)
        build = lambda: LanguageModel(**made.model, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        return _filled(build, _placed(made), checkpoint, skipped=made.skipped)


def load_mixer(folder: str | Path, layer: int, *, dtype: Any = None, param_dtype: Any = jnp.float32) -> mixers.Mixer:
    """The mixer of one layer of a checkpoint, for use in another model.

    Args:
      folder, dtype, param_dtype: as in `load`.
      layer: its index, from 0.
    Raises:
      ConvertError: as in `load`, for the tensors of this mixer; or the layer does not exist.
    """
    with Checkpoint(folder) as checkpoint:
        made = model_mapping(checkpoint.config)
        depth, layers = made.model["depth"], made.model["layers"]
        if not 0 <= layer < depth:
            raise ConvertError(f"layer={layer}: {checkpoint.folder} has layers 0 to {depth - 1}")
        if layers[layer % len(layers)] is None:
            raise ConvertError(f"layer={layer}: {made.refused}")
        spec, settings = layers[layer % len(layers)], {"depth": (layer, depth), "dtype": dtype, "param_dtype": param_dtype}
        build = lambda: mixers.create(spec, made.model["d_model"], **settings, rngs=nnx.Rngs(0))
        own = {
            name: [_Place(rule._replace(targets=tuple(target.removeprefix("mixer.") for target in rule.targets)))]
            for name, rule in made.layers[layer].items()
            if all(target.startswith("mixer.") for target in rule.targets)
        }
        return _filled(build, own, checkpoint, skipped=None)


class _Place(NamedTuple):
    """Place of a rule's targets in the model: a prefix, and an index of the axis that stacks layers, if there is one."""

    rule: Rule
    prefix: str = ""
    layer: int | None = None


def _placed(made: ModelMapping) -> dict[str, list[_Place]]:
    """The places of each tensor: one, or one in each layer with a rule for it.

    Whole repeats of the layer pattern are stacked; the remaining layers are not.
    """
    layers, depth = made.model["layers"], made.model["depth"]
    places = {name: [_Place(rule)] for name, rule in made.tensors.items()}
    for i, rules in enumerate(made.layers):
        repeat, position = divmod(i, len(layers))
        stacked = repeat < depth // len(layers)
        block = f"{position}_{mixers.registry.check(layers[position]).name}"
        prefix = f"stack.{'scanned' if stacked else 'remainder'}.{block}."
        for name, rule in rules.items():
            places.setdefault(name, []).append(_Place(rule, prefix, repeat if stacked else None))
    return places


def _filled(
    build: Callable[[], Built], places: Mapping[str, list[_Place]], checkpoint: Checkpoint, *, skipped: tuple[str, ...] | None
) -> Built:
    """The module of `build` with parameters from the file, which must not hold other tensors, except with a prefix in `skipped`.

    skipped: None allows all other tensors.
    The module is built from abstract shapes, and tensors are read one at a time: peak memory is the parameters and one tensor.
    """
    graphdef, abstract = params.split(nnx.eval_shape(build))
    wanted, tree = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(abstract))
    arrays = {".".join(key.key for key in path): np.empty(leaf.shape, leaf.dtype) for path, leaf in wanted}
    filled: set[tuple[str, int | None]] = set()
    places = {_found(name, at[0].rule.alias, checkpoint): at for name, at in places.items()}
    problems = []
    found = {name: checkpoint.dtype(name) for name in places if name in checkpoint.names()}
    floats = {name for name, dtype in found.items() if dtype in FLOATS}
    problems += [f"{name} is {found[name]}, wanted {', '.join(FLOATS)}" for name in sorted(found.keys() - floats)]

    for name in sorted(found):
        tensor = checkpoint.read(name) if name in floats else None
        for rule, prefix, layer in places[name]:
            filled |= {(prefix + target, layer) for target in rule.targets}
            if tensor is None or not set(rule.extra_inputs) <= floats:
                continue  # reported already, or by the rule of the other tensor
            tied = rule.tied_to
            if tied in floats and not np.array_equal(tensor, checkpoint.read(tied)):
                problems.append(f"{name} differs from {tied}, with which config.json ties it")
            try:
                pieces = rule.make(tensor, *map(checkpoint.read, rule.extra_inputs))
            except (ValueError, IndexError) as error:
                problems.append(f"{name} has shape {tensor.shape}: {error}")
                continue
            for target, piece in zip(rule.targets, pieces, strict=True):
                array, where = arrays[prefix + target], ... if layer is None else layer
                if piece.shape != array[where].shape:
                    shape = array[where].shape
                    problems.append(f"{name} has shape {tensor.shape}, which makes {target} {piece.shape}; wanted {shape}")
                else:
                    array[where] = piece

    for name in sorted(set(places) - set(found)):
        for rule, prefix, layer in places[name]:
            problems += [f"{name} is missing"] if rule.needed else []
            for target in rule.targets:
                filled.add((prefix + target, layer))
                arrays[prefix + target][... if layer is None else layer] = 0
    if skipped is not None:
        unused = sorted(name for name in set(checkpoint.names()) - set(places) if not name.startswith(skipped))
        problems += [f"{name} is unused: no parameter is made from it" for name in unused]
    slots = {(path, i) for path, x in arrays.items() for i in (range(len(x)) if path.startswith("stack.scanned.") else [None])}
    problems += [f"parameter {path} is not filled by any tensor" for path, _ in sorted(slots - filled, key=str)]
    problems = list(dict.fromkeys(problems))  # a tensor of many layers repeats its problem
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        raise ConvertError(f"{checkpoint.folder} does not fit its config.json:{shown}{more}")
    leaves = [jnp.asarray(arrays.pop(path)) for path in tuple(arrays)]
    return nnx.merge(graphdef, jax.tree_util.tree_unflatten(tree, leaves))


def _found(name: str, alias: str | None, checkpoint: Checkpoint) -> str:
    """The alias if the file has the tensor under that name only, else the name."""
    return alias if alias and alias in checkpoint.names() and name not in checkpoint.names() else name
