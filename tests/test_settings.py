"""Settings: each is explained; an odd value gives a working layer or one line that names setting, found and wanted."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from seqzoo import channels, cli, mixers, tasks
from seqzoo.mixers import GatedLinearAttention, Softmax
from seqzoo.nn.layer import Layer
from seqzoo.specs import Spec, SpecError, settings_help, settings_of, type_in_words

WIDTH = 32
ODD = (0, -1, 2.5, "x", None, True, 10**9, float("nan"), 2.0)
KINDS = {"mixer": mixers.registry, "channel mixer": channels.registry, "task": tasks.registry}
EVERY = [(kind, name) for kind, registry in KINDS.items() for name in registry.names() if name != "none"]

MALFORMED = (  # each crashed or was accepted before settings were declared
    "gla(heads=0)",
    "gla(heads='two')",
    "gla(heads=2.0)",
    "gla(heads=None)",
    "gla(heads=-1)",
    "gla(heads=True)",
    "gla(heads=(2, 2))",
    "gla(expand_k=-1)",
    "gla(expand_k='a')",
    "gla(gate_rank=0)",
    "gla(gate_temperature=0)",
    "gla(norm_eps='x')",
    "gla(implementation='x')",
    "softmax(heads=0)",
    "softmax(kv_heads=0)",
    "softmax(window=2.5)",
    "softmax(window=0)",
    "softmax(dropout=2)",
    "softmax(rope_theta=0)",
    "mamba2(head_dim=0)",
    "mamba(expand='a')",
    "mamba(state=0)",
    "mlstm(input_bias='x')",
    "deltanet(heads=True)",
    "deltanet(negative_eigenvalues='no')",
    "retnet(expand_v=0)",
)


def odd_specs(kind, name):
    """A spec for each setting and three of the odd values, others for the next one; tests/cli/test_odd_values.py tries far more."""
    for number, setting in enumerate(settings_help(KINDS[kind].get(name))):
        for value in ODD[number % 3 :: 3]:
            yield setting, value, Spec(name, ((setting.name, value),))


def run_abstractly(kind, spec):
    """Builds what a spec names, and for a layer traces one call; no array is made."""
    if kind == "task":
        return tasks.create(spec)
    layer = nnx.eval_shape(lambda: KINDS[kind].create(spec, WIDTH, rngs=nnx.Rngs(0)))
    return jax.eval_shape(lambda layer, x: layer(x)[0], layer, jnp.zeros((1, 3, WIDTH)))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_an_odd_value_gives_a_working_layer_or_one_line(kind, name):
    for setting, value, spec in odd_specs(kind, name):
        try:
            run_abstractly(kind, spec)
        except ValueError as error:
            message = str(error)
            assert "\n" not in message and setting.name in message, f"{spec}: {message}"
            if isinstance(error, SpecError) and "wanted" in message:
                assert repr(value) in message or str(value) in message, f"{spec}: {message}"


@pytest.mark.parametrize("spec", MALFORMED)
def test_a_malformed_spec_is_refused_with_found_and_wanted(spec):
    with pytest.raises(SpecError) as caught:
        mixers.create(spec, WIDTH, rngs=nnx.Rngs(0))
    message = str(caught.value)
    name, _, setting = spec.removesuffix(")").partition("(")
    assert message.startswith(f"{name}: {setting}, wanted ") and "\n" not in message


@pytest.mark.parametrize("spec", MALFORMED[::5])
def test_the_command_line_refuses_it_in_one_line_and_writes_nothing(spec, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, shown = cli.main(["--model.layers", spec]), capsys.readouterr().err
    assert code == 2 and shown.startswith("error: layers: ") and "wanted" in shown and shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_constructor_checks_what_a_spec_string_checks():
    with pytest.raises(SpecError, match=r"gla: heads=0, wanted int in \[1, 65536\]"):
        GatedLinearAttention(WIDTH, heads=0, rngs=nnx.Rngs(0))
    with pytest.raises(SpecError, match=r"gla has no setting 'head'\. Did you mean 'heads'"):
        GatedLinearAttention(WIDTH, head=2, rngs=nnx.Rngs(0))
    with pytest.raises(SpecError, match="d_model=0, wanted int"):
        GatedLinearAttention(0, rngs=nnx.Rngs(0))
    for dtype in ("bfloat15", "int32"):
        with pytest.raises(SpecError, match=f"gla: dtype='{dtype}', wanted a floating-point dtype"):
            GatedLinearAttention(WIDTH, dtype=dtype, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"rngs=0, wanted flax\.nnx\.Rngs"):
        GatedLinearAttention(WIDTH, rngs=0)


def test_typed_settings_stand_where_a_spec_string_stands():
    typed = GatedLinearAttention.Settings(heads=2, expand_v=2.0)
    assert str(typed) == "gla(heads=2, expand_v=2.0)"
    assert mixers.registry.check(typed) == mixers.registry.check("gla(heads=2, expand_v=2.0)")
    layer = mixers.create(typed, WIDTH, rngs=nnx.Rngs(0))
    assert isinstance(layer, GatedLinearAttention) and (layer.heads, layer.expand_v) == (2, 2.0)
    assert Softmax.Settings(heads=2) == Softmax.Settings(heads=2) != Softmax.Settings(heads=4)
    with pytest.raises(SpecError, match="softmax: window=0, wanted int"):
        Softmax.Settings(window=0)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_setting_has_a_type_and_a_line_of_help(kind, name):
    for setting in settings_help(KINDS[kind].get(name)):
        assert setting.text and setting.text[-1] in ".)", f"{name}.{setting.name}: {setting.text!r}"
        assert setting.type not in ("Any", ""), f"{name}.{setting.name} has type {setting.type}"


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name in EVERY if kind != "task"])
def test_a_layer_declares_settings_and_has_no_constructor_of_its_own(kind, name):
    owner = KINDS[kind].get(name)
    assert owner.__init__ is Layer.__init__
    assert set(settings_of(owner).model_fields).isdisjoint({"d_model", "dtype", "param_dtype", "rngs", "depth"})


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "int"),
        (float | None, "number or None"),
        (tuple[int, ...], "a tuple of int"),
        (tuple[float, float], "(number, number)"),
        (bool, "True or False"),
    ],
)
def test_a_type_is_shown_in_words(annotation, words):
    assert type_in_words(annotation) == words
