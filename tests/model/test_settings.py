"""Settings of LanguageModel and of the section `model` of an experiment are the same, and each has an effect."""

import inspect
from typing import get_type_hints

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from seqzoo import mixers, tasks, training
from seqzoo.config import ConfigError, Model
from seqzoo.model import LanguageModel, params
from seqzoo.specs import type_in_words

TASK = tasks.registry.create("mqar(vocab_size=16, length=8, pairs=2, batch_size=2, eval_pairs=(1,), eval_examples=2)")
ARGUMENTS = {
    name: parameter.default
    for name, parameter in inspect.signature(LanguageModel.__init__).parameters.items()
    if name not in ("self", "rngs")
}
SECTION = {name: field for name, field in Model.model_fields.items() if name != "init_from"}  # which is of the run, no model's
BASE = {"layers": ("linear(heads=2)",), "depth": 2, "d_model": 16, "dtype": "bfloat16"}
OTHER = {
    "layers": ("softmax(heads=2)",),
    "depth": 3,
    "d_model": 32,
    "channel": "gelu",
    "norm": "layer",
    "norm_eps": 1e-2,
    "norm_position": "post",
    "normed_residual": True,
    "residual_scale": 0.5,
    "embedding_norm": True,
    "embedding_scale": 2.0,
    "tie_embeddings": False,
    "pad_vocab": 10,
    "learned_positions": 32,
    "dropout": 0.1,
    "embedding_dropout": 0.1,
    "logits_soft_cap": 30.0,
    "stack": "loop",
    "remat": "full",
    "dtype": "float32",
    "residual_dtype": "float32",
    "param_dtype": "bfloat16",
}


def program(**settings):
    """Parameters and computation of a model, as text; nothing is allocated."""
    model = nnx.eval_shape(lambda: training.build(Model(**{**BASE, **settings}), TASK, jax.random.key(0)))
    described = params.map_variables(lambda path, variable: (path, variable.shape, variable.dtype), params.split(model)[1])
    arguments = jnp.zeros((2, 8), jnp.int32), jax.random.key(0)
    return str(described), str(jax.make_jaxpr(lambda model, tokens, key: model(tokens, key=key)[0])(model, *arguments))


@pytest.fixture(scope="module")
def base():
    found = program()
    assert program() == found  # the text depends on the settings alone
    return found


def test_the_section_has_every_setting_of_the_constructor_and_its_default():
    section = {name: field.default for name, field in SECTION.items()}
    assert section.keys() == ARGUMENTS.keys() - {"vocab_size"}
    for name in section.keys() - {"d_model"}:
        default = ARGUMENTS[name]
        assert section[name] == (default if default is not jnp.float32 else "float32"), name


def test_types_and_ranges_of_the_section_are_those_of_the_constructor():
    constructor = get_type_hints(LanguageModel.__init__, include_extras=True)
    checked_elsewhere = {"layers", "channel", "dtype", "residual_dtype", "param_dtype"}
    for name in SECTION.keys() - checked_elsewhere:
        field = SECTION[name]
        assert type_in_words(field.annotation, field.metadata) == type_in_words(constructor[name]), name


@pytest.mark.parametrize("name", ["vocab_size", *OTHER])
@pytest.mark.parametrize("value", [0, -1, 2.5, "x", None, True, 10**9, (1,)], ids=str)
def test_a_constructor_accepts_a_value_or_refuses_it_in_one_line(name, value):
    arguments = {"vocab_size": 11, "d_model": 8, "layers": "linear(heads=1)", "depth": 1, "channel": "none", name: value}
    try:
        nnx.eval_shape(lambda: LanguageModel(**arguments, rngs=nnx.Rngs(0)))
    except ValueError as error:
        assert "\n" not in str(error) and (name in str(error) or repr(value).strip("(,)") in str(error))


def test_layers_may_be_typed_settings():
    layer = mixers.registry.get("linear").Settings(heads=2)
    model = nnx.eval_shape(lambda: LanguageModel(11, 8, layers=layer, rngs=nnx.Rngs(0)))
    assert model.stack.scanned.blocks()["0_linear"].mixer.heads == 2
    assert Model(layers=layer) == Model(layers=(layer,)) == Model(layers="linear(heads=2)")


def test_every_setting_is_tried():
    assert OTHER.keys() == SECTION.keys()


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_reaches_the_model_through_training(name, base):
    assert program(**{name: OTHER[name]}) != base


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm_eps": 0}, "norm_eps: .*greater than 0, found 0"),
        ({"norm_position": "psot"}, "norm_position.*'pre' or 'post', found 'psot'"),
        ({"norm_position": ("pre", "post")}, r"norm_position=\('pre', 'post'\): wanted one, or one for each of 1 layer specs"),
        ({"norm_position": "post", "normed_residual": True}, "normed_residual=True with norm_position='post'"),
        ({"normed_residual": "maybe"}, "normed_residual: .*found 'maybe'"),
        ({"residual_scale": 0}, "residual_scale: .*greater than 0, found 0"),
        ({"embedding_scale": float("inf")}, "embedding_scale: .*finite number, found inf"),
        ({"logits_soft_cap": -1}, "logits_soft_cap: .*greater than 0, found -1"),
        ({"residual_dtype": "float8"}, "residual_dtype: .*found 'float8'"),
    ],
)
def test_a_setting_outside_its_range_is_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Model(**settings)
    assert "\n" not in str(caught.value)


def test_norm_positions_are_one_word_of_the_command_line():
    from seqzoo.cli.shared import parse_settings
    from seqzoo.config import Experiment

    words = ["--model.layers", "gla, softmax", "--model.norm-position", "pre, post"]
    assert parse_settings(Experiment(), words).model.norm_position == ("pre", "post")
    assert parse_settings(Experiment(), ["--model.norm-position", "post"]).model.norm_position == "post"
