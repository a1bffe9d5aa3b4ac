"""Mixers, channel mixers, tasks, update rules and schedules from a module outside the repository: all commands, and Linen."""

import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import seqzoo.linen
from helpers.tiny import TINY, tiny
from seqzoo import channels, cli, config, mixers, plugins, tasks
from seqzoo.config import Comparison, ConfigError, Experiment, Model, Optimizer
from seqzoo.testing import check_mixer
from seqzoo.training import optim

MODULE = """
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from seqzoo import channels, mixers, tasks
from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.mixers.base import next_state, state_kwargs
from seqzoo.nn import Linear
from seqzoo.specs import Rate, Size
from seqzoo.training import optim


class AverageState(NamedTuple):
    mean: jax.Array  # [b, d] float32
    segment: jax.Array  # [b] int32


@mixers.register("my_average")
class MyAverage(mixers.Mixer):
    '''Running mean of the tokens: m_t = decay m_{t-1} + (1 - decay) x_t, y_t = W m_t.'''

    decay: Rate = 0.5
    '''Part of the mean that stays from one token to the next.'''

    def setup(self, rngs, depth):
        self.out = Linear(self.d_model, self.d_model, **self.factory_kwargs(rngs))

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        decay = jnp.full((1, 1, x.shape[-1]), self.decay, x.dtype)
        mean, last = linear_recurrence(decay, (1 - self.decay) * x, segment_ids=segment_ids, **state_kwargs(state, "mean"))
        return self.out(mean), next_state(state, segment_ids, mean=last)

    def init_state(self, batch, max_length=None, dtype=None):
        return AverageState(jnp.zeros((batch, self.d_model)), jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length):
        return 2 * batch * length * self.d_model**2


@channels.register("my_mlp")
class MyMLP(channels.ChannelMixer):
    '''y = W_o relu(W_i x).'''

    hidden: Size = 8
    '''Hidden width.'''

    def setup(self, rngs, depth):
        self.up = Linear(self.d_model, self.hidden, **self.factory_kwargs(rngs))
        self.down = Linear(self.hidden, self.d_model, **self.factory_kwargs(rngs))

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        return self.down(jax.nn.relu(self.up(x))), state

    def flops(self, batch, length):
        return 4 * batch * length * self.d_model * self.hidden


@tasks.register("my_recall")
class MyRecall(tasks.MQAR):
    '''Associative recall under another name.'''


@optim.register("my_momentum")
def my_momentum(decay: float = 0.9) -> optax.GradientTransformation:
    '''Gradient descent with momentum.'''
    return optax.trace(decay)


@optim.register_schedule("my_ramp")
def my_ramp(learning_rate: float, steps: int, *, start: float = 0.0) -> optax.Schedule:
    '''A straight line to the learning rate.'''
    return optax.linear_schedule(start, learning_rate, steps)
"""
OWN = {  # an experiment made of nothing but those
    "model.layers": ("my_average(decay=0.75)",),
    "model.channel": "my_mlp(hidden=8)",
    "task": TINY["task"].replace("mqar", "my_recall"),
    "optimizer.rule": "my_momentum(decay=0.5)",
    "optimizer.schedule": "my_ramp(start=0.001)",
}
REGISTRIES = (mixers.registry, channels.registry, tasks.registry, optim.update_rules.registry, optim.schedules.registry)


def forget(*modules):
    """Makes this process one that has not imported the modules: commands must import them again."""
    for registry in REGISTRIES:
        for name in [name for name in registry._table if name.startswith("my_")]:
            del registry._table[name]
    for module in modules:
        sys.modules.pop(module, None)
    plugins._loaded.clear()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module outside the repository, on the path and not imported yet; the working directory is empty."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "my_parts.py").write_text(MODULE)
    (tmp_path / "work").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path / "work")
    forget("my_parts")
    yield "my_parts"
    forget("my_parts")


def write(folder, chosen):
    """The path of the config's config.json."""
    (folder / "config.json").write_text(chosen.model_dump_json())
    return folder / "config.json"


def own(module, **values):
    """The tiny experiment with the module's parts."""
    return config.replace(tiny(), {"imports": (module,), **OWN, **values})


def test_modules_are_imported_before_specs_are_checked(module):
    with pytest.raises(ConfigError, match=r"model\.layers: no mixer is called 'my_average'"):
        Experiment(model=Model(layers=("my_average",)))
    with pytest.raises(ConfigError, match=r"optimizer\.rule: no update rule is called 'my_momentum'"):
        Experiment(optimizer=Optimizer(rule="my_momentum"))
    model, optimizer = Model(layers=("my_average",), channel="my_mlp"), Optimizer(rule="my_momentum", schedule="my_ramp")
    made = Experiment(imports=(module,), model=model, optimizer=optimizer, task=OWN["task"])
    assert made.model.layers == ("my_average",) and made.name == "my_recall-my_average"


def test_the_settings_of_their_mixers_are_checked_as_ours_are(module):
    with pytest.raises(ConfigError, match=r"my_average has no setting 'decy'. Did you mean 'decay'\?"):
        Experiment(imports=(module,), model=Model(layers=("my_average(decy=0.75)",)))
    forget(module)
    with pytest.raises(ConfigError, match=r"model\.channel: no channel mixer is called 'my_lmp'. Did you mean 'my_mlp'\?"):
        Experiment(imports=module, model={"channel": "my_lmp"})
    with pytest.raises(ConfigError, match=r"optimizer: rule: my_momentum has no setting 'decy'. Did you mean 'decay'\?"):
        Experiment(imports=module, optimizer={"rule": "my_momentum(decy=0.5)"})
    with pytest.raises(ConfigError, match=r"optimizer: schedule: my_ramp: start='x', wanted number"):
        Experiment(imports=module, optimizer={"schedule": "my_ramp(start='x')"})


def test_their_mixer_is_held_to_the_law(module):
    plugins.import_modules([module])
    check_mixer("my_average(decay=0.75)")


def test_a_config_with_imports_survives_json(module, tmp_path):
    comparison = Comparison(base=own(module), axes={"model.layers": ("my_average", "softmax")})
    for chosen in (own(module), comparison):
        path = write(tmp_path / "work", chosen)
        forget(module)
        assert config.load_json(path) == chosen


@pytest.fixture
def words(module):
    """The command line of the experiment with the module's parts."""
    settings = {**TINY, "imports": module, **OWN, "model.layers": OWN["model.layers"][0]}
    return [word for path, value in settings.items() for word in (f"--{path.replace('_', '-')}", str(value))]


@pytest.fixture
def file(tmp_path):
    """A config file that knows nothing of the module."""
    (tmp_path / "plain.py").write_text("from seqzoo.config import Experiment\nconfig = Experiment()\n")
    return str(tmp_path / "plain.py")


def test_a_run_of_their_parts_is_trained_resumed_evaluated_inspected_and_generates(module, words, file, capsys, tmp_path):
    def call(*arguments):
        forget(module)
        assert cli.main(list(arguments)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "saved runs/mine at step 2" in call(file, *words, "--run.name", "mine", "--training.stop-after-steps", "2")
    assert '"imports": [\n    "my_parts"' in (tmp_path / "work" / "runs" / "mine" / "config.json").read_text()
    assert "saved runs/mine at step 4" in call("resume", "runs/mine")
    assert "runs/mine at step 4" in call("eval", "runs/mine")
    shown = call("inspect", "runs/mine")
    assert "my_average(decay=0.75)" in shown and "0_my_average" in shown
    call("plot", "runs/mine")
    assert (tmp_path / "work" / "loss.png").is_file()
    call("generate", "runs/mine", "--prompt", "1 2 3", "--max-new-tokens", "2", "--temperature", "0")
    assert "my_average" in call(file, *words, "--dry-run")


@pytest.mark.slow
def test_their_mixer_is_compared_with_ours(module, words, file, capsys, tmp_path):
    place = words.index("--model.layers")
    words = [*words[:place], *words[place + 2 :], "--run.name", "both"]
    assert cli.main([file, *words, "--sweep", "model.layers=my_average(decay=0.75), softmax(heads=2)"]) == 0
    report = (tmp_path / "work" / "runs" / "both" / "report.md").read_text()
    assert "my_average" in report and "softmax" in report and "2 of 2 runs have a result" in report
    forget(module)
    assert cli.main(["plot", "runs/both"]) == 0


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("my_absent", None, "the module 'my_absent' cannot be imported (ModuleNotFoundError: No module named 'my_absent')"),
        ("my_broken", "1 / 0", "the module 'my_broken' cannot be imported (ZeroDivisionError: division by zero)"),
        (
            "my_twice",
            MODULE.replace('"my_average"', '"gla"'),
            "the module 'my_twice' cannot be imported (ValueError: mixer 'gla' is",
        ),
        ("../elsewhere", None, "'../elsewhere' is not a module name; wanted a dotted name"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_in_one_line_before_anything_is_written(
    module, tmp_path, file, capsys, name, source, says
):
    if source:
        (tmp_path / "site" / f"{name}.py").write_text(source)
    forget(name)
    code, said = cli.main([file, "--imports", name]), capsys.readouterr().err
    assert code == 2 and says in said and "imports" in said and said.count("\n") == 1, said
    assert not list((tmp_path / "work").iterdir())


@pytest.fixture
def foreign(module, tmp_path):
    """A run folder whose module is not importable here."""
    folder = tmp_path / "work" / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(own(module).model_dump_json())
    (folder / "metrics.jsonl").write_text('{"step": 4, "kind": "train", "loss": 1.25}\n')
    (tmp_path / "site" / "my_parts.py").unlink()
    forget(module)
    return "theirs"


@pytest.mark.parametrize("command", ["resume", "eval", "generate", "inspect", "plot"])
def test_a_run_whose_module_is_missing_says_so_in_one_line(foreign, capsys, command):
    assert cli.main([command, foreign]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "imports: the module 'my_parts' cannot be imported" in error and "--no-imports" in error


def test_without_imports_a_run_is_inspected_and_drawn_and_the_unknown_mixer_is_named(foreign, capsys, tmp_path):
    assert cli.main(["inspect", foreign, "--no-imports"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "theirs: step 4 of 6, not finished" in shown and "my_average(decay=0.75)" in shown
    assert "The model cannot be shown: no task is called 'my_recall'" in shown and "Not imported: my_parts" in shown
    assert cli.main(["plot", foreign, "--no-imports"]) == 0 and (tmp_path / "work" / "loss.png").is_file()
    assert cli.main(["eval", foreign, "--no-imports"]) == 2
    assert "--no-imports is for inspect, plot, report; eval needs the modules" in capsys.readouterr().err


def test_a_module_inside_a_run_folder_is_never_executed(foreign, capsys, tmp_path, monkeypatch):
    (tmp_path / "work" / "theirs" / "my_parts.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path / "work" / "theirs")
    assert cli.main(["inspect", foreign]) == 2
    assert "the module 'my_parts' is inside the run folder theirs" in capsys.readouterr().err


def test_their_mixer_is_a_linen_module(module):
    assert not hasattr(seqzoo.linen, "MyAverage")
    plugins.import_modules([module])
    x = jax.random.normal(jax.random.key(0), (2, 8, 16))
    for layer in (seqzoo.linen.MyAverage(16, decay=0.75), seqzoo.linen.create("my_average(decay=0.75)", 16)):
        variables = layer.init(jax.random.key(1), x)
        y, _ = layer.apply(variables, x)
        assert y.shape == x.shape and jnp.all(jnp.isfinite(y))
    assert "MyAverage" in dir(seqzoo.linen)


@pytest.fixture
def package(module, tmp_path):
    """An installed package with an entry point; returns the file that names it."""
    info = tmp_path / "site" / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nparts = {module}\n")
    return info / "entry_points.txt"


def test_an_installed_plugin_needs_no_imports(package):
    model, optimizer = (
        Model(layers=("my_average(decay=0.75)",), channel="my_mlp"),
        Optimizer(rule="my_momentum", schedule="my_ramp"),
    )
    made = Experiment(model=model, optimizer=optimizer, task=OWN["task"])
    assert made.imports == () and mixers.create("my_average", 16, rngs=nnx.Rngs(0)).decay == 0.5
    assert config.load_json(write(package.parent, made)) == made


def test_a_plugin_that_cannot_be_imported_is_named_with_its_package(package):
    package.write_text(f"[{plugins.GROUP}]\nparts = my_absent\n")
    with pytest.raises(ConfigError, match=r"'parts = my_absent' of the package my-package .*No module named 'my_absent'"):
        Experiment(model=Model(layers=("my_average",)))


def test_an_installed_plugin_is_not_imported_without_imports(package, module):
    with plugins.skip_imports():
        assert Experiment(model=Model(layers=("my_average",))).model.layers == ("my_average",)
    assert module not in sys.modules
