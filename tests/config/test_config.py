"""The typed experiment: wrong settings are refused with a clear message, and JSON round trips are exact."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from helpers.tiny import tiny
from seqzoo import compare, config, training
from seqzoo.cli import quickstart
from seqzoo.config import Comparison, ConfigError, Experiment, Mesh, Model, Optimizer, Run, Training

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
SECTIONS = (Model, Optimizer, Training, Mesh, Run, Experiment, Comparison)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Model(d_modle=3), r"Model has no setting 'd_modle'. Did you mean 'd_model'\? Settings: layers, depth"),
        (lambda: Experiment(model={"dept": 3}), r"Model has no setting 'dept'. Did you mean 'depth'\?"),
        (lambda: Experiment(modle={}), r"Experiment has no setting 'modle'. Did you mean 'model'\?"),
        (
            lambda: Experiment(model=Model(layers=("sofmax",))),
            r"model.layers: no mixer is called 'sofmax'. Did you mean 'softmax'\? Known: ",
        ),
        (lambda: Model(layers=("softmax(head=2)",)), r"softmax has no setting 'head'. Did you mean 'heads'\? Settings: "),
        (lambda: Model(layers=()), "layers: no mixer is named"),
        (
            lambda: Experiment(model=Model(channel="swigl")),
            r"model.channel: no channel mixer is called 'swigl'. Did you mean 'swiglu'\?",
        ),
        (lambda: Experiment(task="mqr"), r"no task is called 'mqr'. Did you mean 'mqar'\?"),
        (lambda: Experiment(task="mqar(pair=3)"), r"mqar has no setting 'pair'. Did you mean 'pairs'\?"),
        (lambda: Experiment(task="mqar(length=16, pairs=100)"), "task: .*pairs"),
        (lambda: Model(d_model=0), "d_model: .*greater than or equal to 1, found 0"),
        (lambda: Model(norm="batch"), "norm: .*'rms' or 'layer', found 'batch'"),
        (lambda: Model(dropout=1.0), "dropout: .*less than 1, found 1.0"),
        (lambda: Optimizer(rule="adamw(b2=1.0)"), r"rule: adamw: b2=1.0, wanted number in \[0, 1\)"),
        (
            lambda: Experiment(optimizer=Optimizer(rule="adam")),
            "rule: no update rule is called 'adam'. Did you mean 'adamw'.*Known: adamw, adamp",
        ),
        (lambda: Optimizer(rule=("adamw",)), "rule: .*found "),
        (lambda: Optimizer(rule="adafactor(b1=0.9)"), "adafactor has no setting 'b1'. Settings: weight_decay, decay_all$"),
        (lambda: Optimizer(rule="lion(eps=1e-6)"), "lion has no setting 'eps'. Settings: weight_decay, decay_all, b1, b2"),
        (lambda: Optimizer(rule="adamw(momentum=0.9)"), "adamw has no setting 'momentum'. Settings: .*b1, b2, eps"),
        (lambda: Optimizer(schedule="constant(final_fraction=0.0)"), "schedule: constant has no setting 'final_fraction'"),
        (
            lambda: Optimizer(schedule="rsqrt(final_fraction=0.0)"),
            "final_fraction=0.0 has .* without a cooldown.*cooldown_fraction",
        ),
        (lambda: Optimizer(schedule="cosine(cooldown_fraction=0.2)"), "cosine has no setting 'cooldown_fraction'"),
        (lambda: Optimizer(schedule="rsqrt(warmup_steps=0)"), r"rsqrt: warmup_steps=0, wanted int in \[1, "),
        (lambda: Optimizer(warmup_steps=5), "Optimizer has no setting 'warmup_steps'"),
        (lambda: Optimizer(noise_decay=1.0), "noise_decay=1.0 has no use with noise=0.0"),
        (lambda: Training(min_gain=0.1), "min_gain=0.1 has no use with patience=None; wanted min_gain=0.01, or a patience"),
        (
            lambda: Optimizer(skip_spikes=5.0),
            "skip_spikes=5.0 has no use with skip_limit=None; wanted skip_spikes=None, or a skip_limit",
        ),
        *(
            (
                lambda wrong=wrong: Optimizer(accumulate_steps=wrong),
                f"accumulate_steps: '{wrong}': wanted a number of at least 1, FROM_STEP:NUMBER",
            )
            for wrong in ("0", "", "2.5", "5:2", "0:1,9:0", "0:1,9:2,9:4", "1,9:2")
        ),
        (
            lambda: Optimizer(accumulate_steps="norm"),
            "accumulate_steps: no gradient accumulation rule is called 'norm'. Did you mean 'norm_test'",
        ),
        (lambda: Optimizer(accumulate_steps="norm_test(threshold=1.0)"), r"norm_test: threshold=1.0, wanted number in \(0, 1\)"),
        (lambda: Optimizer(accumulate_steps="norm_test(initial_steps=1)"), "norm_test: initial_steps=1, wanted int in"),
        (lambda: Optimizer(accumulate_steps="norm_test(max_steps=12)"), "norm_test: max_steps=12, wanted a power of two"),
        (lambda: Optimizer(accumulate_steps="norm_test(initial_steps=16)"), "max_steps=16, wanted more than initial_steps=16"),
        (lambda: Mesh(fsdp=-1, replica=-1), "at most one -1"),
        (lambda: Mesh(tensor=0), "wanted at least 1 each"),
        (lambda: Mesh(rules={"embd": "fsdp"}), r"no parameter axis is called 'embd'. Did you mean 'embed'\?"),
        (lambda: Mesh(rules={"heads": "tensr"}), r"heads is on 'tensr'.*Did you mean 'tensor'\?"),
        (lambda: Run(name="a/b"), "wanted the name of one folder"),
        (lambda: Run(profile="13:10"), "profile: '13:10': wanted FIRST:LAST with FIRST < LAST"),
        (lambda: Run(profile=""), "wanted FIRST:LAST"),
        (lambda: Run(log=("tensorbord",)), "log.*'tensorboard' or 'wandb', found 'tensorbord'"),
        (lambda: Run(log=("wandb", "wandb")), "wanted each once"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_value_found_and_the_values_wanted(build, says):
    with pytest.raises(ConfigError, match=says):
        build()


NUMBERS = [path for path, value in config.settings(Experiment()).items() if type(value) in (int, float)]


@pytest.mark.parametrize("path", NUMBERS)
@pytest.mark.parametrize("value", [True, "2", float("nan"), [2]], ids=repr)
def test_a_number_is_a_number(path, value):
    with pytest.raises(ConfigError, match=path.rpartition(".")[2]) as error:
        config.replace(Experiment(), {path: value})
    assert "\n" not in str(error.value) and "found" in str(error.value)


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Model().d_model = 3


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_explained(section):
    silent = [name for name, field in section.model_fields.items() if not field.description]
    assert not silent and section.__doc__


def test_unnamed_mesh_rules_keep_their_defaults():
    assert Mesh(rules={"heads": "tensor"}).rules == {**Mesh().rules, "heads": "tensor"}


@pytest.mark.parametrize(
    "chosen",
    [
        tiny(model__layers=("gla(heads=2)", "softmax"), mesh__rules={"heads": "tensor"}, model__dtype="bfloat16"),
        Comparison(base=tiny(), axes={"model.layers": ("softmax", ("gla", "mamba2")), "optimizer.learning_rate": (1e-3, 3e-3)}),
    ],
)
def test_a_config_survives_json(chosen, tmp_path):
    (tmp_path / "config.json").write_text(chosen.model_dump_json())
    assert config.load_json(tmp_path / "config.json") == chosen


def test_a_comparison_is_every_combination_with_the_last_axis_fastest():
    axes = {"model.layers": ("softmax", "gla"), "training.seed": (0, 1)}
    found = list(Comparison(base=tiny(), axes=axes).experiments())
    assert [tuple(point.values()) for point, _ in found] == [("softmax", 0), ("softmax", 1), ("gla", 0), ("gla", 1)]
    assert [(e.model.layers, e.training.seed) for _, e in found] == [
        (("softmax",), 0),
        (("softmax",), 1),
        (("gla",), 0),
        (("gla",), 1),
    ]
    assert all(experiment.optimizer == tiny().optimizer for _, experiment in found)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"model.layer": ("gla",)}, r"no setting is called 'model.layer'. Did you mean 'model.layers'\?"),
        ({"seed": (0,)}, r"no setting is called 'seed'. Did you mean 'training.seed'\?"),
        ({"model.layers": ("retent",)}, r"no mixer is called 'retent'. Did you mean 'retnet'\?"),
        ({"model.layers": "gla"}, "wanted a tuple of at least one value"),
        ({"model.layers": ()}, "wanted a tuple of at least one value"),
        (
            {"training.stop_after_steps": (None, 3)},
            "training.stop_after_steps=3, but a comparison needs finished runs; wanted None",
        ),
    ],
)
def test_a_wrong_axis_is_refused_before_anything_runs(axes, says):
    with pytest.raises(ConfigError, match=says):
        Comparison(base=tiny(), axes=axes)


def test_difference_gives_both_values_and_ignores_the_section_run():
    changed = config.replace(tiny(), {"model.depth": 3, "run.name": "elsewhere", "run.log": ("wandb",)})
    assert config.difference(tiny(), changed) == {"model.depth": (1, 3)}


LARGE = ("lm_mixers.py", "mqar_tradeoff.py", "mqar_equal_state.py", "mqar_figure2.py")  # dozens of models


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name, marks=pytest.mark.slow if path.name in LARGE else ()) for path in CONFIGS]
)
def test_every_config_in_the_repository_is_valid_and_fits_its_task_and_model(path):
    chosen = config.load_file(path)
    for experiment, *_ in compare.group_by_label(chosen).values():
        training.check(config.replace(experiment, {"mesh.fsdp": 1}))


def test_the_packaged_quickstart_is_the_config_file():
    assert Path(quickstart.__file__).resolve() == CONFIGS[0].parent.resolve() / "quickstart.py"


def test_the_quickstart_compares_a_mixer_of_every_kind_at_equal_memory():
    found = {point["mixer"]: point for point, _ in quickstart.config.experiments()}
    anchors = {"softmax", "sigmoid", "aaren"}
    assert found.keys() == anchors | {"linear", "gla", "gated_deltanet", "rwkv7", "mamba2", "mamba"}
    assert all(abs(found[name]["matched"] - 4096) < 0.05 * 4096 for name in found.keys() - anchors)


def test_a_missing_config_file_or_one_without_a_config_is_refused(tmp_path):
    (tmp_path / "experiment.py").write_text("x = 1")
    with pytest.raises(ConfigError, match=r"no config file .*experimnt\.py\. Did you mean .*experiment\.py"):
        config.load_file(tmp_path / "experimnt.py")
    with pytest.raises(ConfigError, match=r"defines config=None; wanted config = Experiment\(\.\.\.\)"):
        config.load_file(tmp_path / "experiment.py")
