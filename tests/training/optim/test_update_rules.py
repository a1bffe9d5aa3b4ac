"""The update rules against their formulas in NumPy, layer by layer, and what is done to gradients before them."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from helpers import tiers
from helpers.tiny import quiet, tiny
from helpers.tolerances import assert_close
from seqzoo import mixers, nn, training
from seqzoo.config import Optimizer
from seqzoo.model import LanguageModel, params
from seqzoo.training import optim
from seqzoo.training.optim import adamp
from seqzoo.training.optim.optimizer import make_optimizer

NAMES = ("adamw", "adamp", "lamb", "lion", "sgd", "adafactor", "muon")
B1, B2, EPSILON, DECAY, RATE = 0.9, 0.95, 1e-8, 0.3, 0.01

# path: (shape, axes of its own layer, weight decay allowed). What lies under "stack" has a leading axis of two layers.
SHAPES = {
    "embedding": ((7, 6), ("vocab", "embed"), True),
    "norm": ((6,), ("embed",), True),
    "stack/w": ((2, 6, 4), ("embed", "heads"), True),
    "stack/wide": ((2, 128, 130), ("embed", "heads"), True),
    "stack/blocks": ((2, 3, 4, 2), ("heads", None, None), True),
    "stack/taps": ((2, 3, 6), ("conv_kernel", "heads"), True),
    "stack/marked": ((2, 6, 4), ("embed", "heads"), False),
    "stack/scale": ((2, 6), ("embed",), True),
}
MATRICES = {"stack/w", "stack/wide", "stack/blocks"}  # what Muon acts on


def state():
    """The parameters above, with metadata."""
    rng, tree = np.random.default_rng(0), {"stack": {}}
    for path, (shape, axes, decay) in SHAPES.items():
        value = jnp.asarray(rng.normal(size=shape) * 0.5, jnp.float32)
        node = tree["stack"] if path.startswith("stack/") else tree
        node[path.removeprefix("stack/")] = nnx.Param(value, axes=axes, decay=decay)
    return nnx.State(tree)


def flat(tree):
    """{path: leaf}."""
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def adam(s, g, t):
    s["m"] = B1 * s.get("m", 0) + (1 - B1) * g
    s["v"] = B2 * s.get("v", 0) + (1 - B2) * g * g
    return s["m"] / (1 - B1**t) / (np.sqrt(s["v"] / (1 - B2**t)) + EPSILON)


def adamw(s, g, w, t, d, path):
    return adam(s, g, t) + d * w


def lamb(s, g, w, t, d, path):
    u = adam(s, g, t) + d * w
    return u * np.linalg.norm(w) / np.linalg.norm(u)


def lion(s, g, w, t, d, path):
    m = s.get("m", 0)
    s["m"] = B2 * m + (1 - B2) * g
    return np.sign(B1 * m + (1 - B1) * g) + d * w


def sgd(s, g, w, t, d, path):
    s["m"] = 0.9 * s.get("m", 0) + g
    return s["m"] + d * w


def adafactor(s, g, w, t, d, path):
    decay = 1 - t**-0.8
    square = g * g + 1e-30
    if min(w.shape) >= 128:
        s["rows"] = decay * s.get("rows", 0) + (1 - decay) * square.mean(1)
        s["columns"] = decay * s.get("columns", 0) + (1 - decay) * square.mean(0)
        v = np.outer(s["rows"], s["columns"]) / s["rows"].mean()
    else:
        v = s["v"] = decay * s.get("v", 0) + (1 - decay) * square
    rms = lambda x: np.sqrt(np.mean(x * x))
    u = g / np.sqrt(v)
    return u / max(1, rms(u)) * max(1e-3, rms(w)) + d * w


def newton_schulz(x):
    """Jordan et al. 2024, the matrix alone."""
    flipped = x.shape[0] > x.shape[1]
    x = x.T if flipped else x
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if flipped else x


def muon(s, g, w, t, d, path):
    if path not in MATRICES:
        return adamw(s, g, w, t, d, path)
    s["m"] = 0.95 * s.get("m", 0) + 0.05 * g
    nesterov = 0.95 * s["m"] / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)  # optax corrects the bias of both
    heads = nesterov.reshape(-1, *w.shape[-2:])
    orthogonal = np.stack([newton_schulz(head) for head in heads]).reshape(w.shape)
    return 0.2 * math.sqrt(max(w.shape[-2:])) * orthogonal + d * w


def adamp_loop(s, g, w, t, d, path):
    """Algorithm 2 of Heo et al., one vector at a time: all channels or, if one of them is not invariant, the whole."""
    p = adam(s, g, t)
    if w.ndim == 1:
        return p + d * w
    channels = [(i,) for i in range(len(w))] if path == "embedding" else [(..., *at) for at in _channels(w.shape)]
    for views in (channels, [(...,)]):
        cosines = [abs(np.sum(w[at] * g[at])) / np.linalg.norm(w[at]) / np.linalg.norm(g[at]) for at in views]
        if max(cosines) < 0.1 / math.sqrt(w[views[0]].size):
            q = p.copy()
            for at in views:
                unit = w[at] / np.linalg.norm(w[at])
                q[at] = p[at] - unit * np.sum(unit * p[at])
            s["projected"] = len(views)
            return q + d * w
    return p + d * w


def _channels(shape):
    """Indices of the axes but the last but one, which is what makes a channel."""
    for index in np.ndindex(*shape[:-2], shape[-1]):
        yield (*index[:-1], slice(None), index[-1])


RULES = dict(adamw=adamw, adamp=adamp_loop, lamb=lamb, lion=lion, sgd=sgd, adafactor=adafactor, muon=muon)


def gradients(path, w, rng):
    """Random ones; of "stack/w" orthogonal to every channel, of "stack/blocks" to the whole of a layer: invariant to the length."""
    g = rng.normal(size=w.shape)
    axes = {"stack/w": (1,), "stack/blocks": (1, 2, 3)}.get(path)
    if axes is not None:
        g -= w * (w * g).sum(axes, keepdims=True) / (w * w).sum(axes, keepdims=True)
    return g


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_is_its_formula_for_every_layer_by_itself(name):
    """Four steps from the same gradients; weight decay on matrices that are not marked."""
    rule, schedule = f"{name}(weight_decay={DECAY})", "constant(warmup_steps=0)"
    settings = Optimizer(rule=rule, learning_rate=RATE, schedule=schedule, clip_norm=None)
    tx = make_optimizer(settings, 10, state())
    values = nnx.to_pure_dict(state())
    wanted = {path: np.asarray(w, np.float64) for path, w in flat(values).items()}
    memory = {path: [{}, {}] for path in wanted}
    opt_state, update, rng = jax.jit(tx.init)(values), jax.jit(tx.update), np.random.default_rng(1)
    for t in range(1, 5):
        gradient = {path: gradients(path, w, rng) for path, w in wanted.items()}
        leaves = [jnp.asarray(gradient[path], jnp.float32) for path in flat(values)]
        tree = jax.tree.unflatten(jax.tree.structure(values), leaves)
        updates, opt_state = update(tree, opt_state, values)
        values = optax.apply_updates(values, updates)
        for path, w in wanted.items():
            d = DECAY if SHAPES[path][2] and len(SHAPES[path][1]) > 1 else 0.0
            layers = w if path.startswith("stack/") else w[None]
            slopes = gradient[path].reshape(layers.shape)
            steps = [RULES[name](s, g, one, t, d, path) for s, g, one in zip(memory[path], slopes, layers, strict=False)]
            direction = np.stack(steps).reshape(w.shape)
            assert_close(-flat(updates)[path] / RATE, direction, tolerance=1e-4, what=f"{name}, step {t}, {path}")
            wanted[path] = w - RATE * direction
    if name == "adamp":  # both ways of projecting were taken
        assert memory["stack/w"][0]["projected"] == 4 and memory["stack/blocks"][0]["projected"] == 1


@pytest.mark.parametrize("name", ["adamp", "adamw"])
def test_adamps_steps_are_orthogonal_to_weights_whose_length_does_not_matter_and_adams_are_not(name):
    w, target = (np.random.default_rng(seed).normal(size=(6, 4)) for seed in (0, 1))
    loss = lambda tree: jnp.sum((tree["w"] / jnp.linalg.norm(tree["w"], axis=0, keepdims=True) - target) ** 2)
    values = {"w": jnp.asarray(w, jnp.float32)}
    tx = {"adamp": adamp.scale_by_adamp(B1, B2, EPSILON, {"w": ((-2,), (-2, -1))}), "adamw": optax.scale_by_adam(B1, B2)}[name]
    opt_state, cosines = tx.init(values), []
    for _ in range(5):
        updates, opt_state = tx.update(jax.grad(loss)(values), opt_state, values)
        u, w = (np.asarray(tree["w"], np.float64) for tree in (updates, values))
        cosines.append(np.abs((u * w).sum(0)) / np.linalg.norm(u, axis=0) / np.linalg.norm(w, axis=0))
        values = optax.apply_updates(values, optax.tree.scale(-0.1, updates))
    assert (np.max(cosines) < 1e-5) == (name == "adamp"), cosines


def test_muons_directions_have_singular_values_near_each_other_and_the_size_of_adams():
    matrix = nnx.State({"stack": {"w": nnx.Param(jnp.zeros((2, 48, 32)), axes=("embed", "heads"))}})
    tx = optim.Muon(weight_decay=0.0).transformation(matrix)
    values = nnx.to_pure_dict(matrix)
    gradient = jax.tree.map(lambda w: jax.random.normal(jax.random.key(0), w.shape), values)
    updates, _ = tx.update(gradient, tx.init(values), values)
    singular = np.linalg.svd(np.asarray(updates["stack"]["w"]), compute_uv=False) / (0.2 * math.sqrt(48))
    assert 0.6 < singular.min() and singular.max() < 1.3
    np.testing.assert_allclose(np.std(updates["stack"]["w"]), 0.2, rtol=0.15)


@pytest.mark.parametrize("spec", mixers.names())
def test_the_matrices_of_a_model_are_the_projections_of_its_blocks(spec):
    """Muon's. Not embedding and head; not the kernels of convolutions; nothing with one axis; nothing that decay must not touch."""
    build = lambda: LanguageModel(32, 64, layers=(spec,), depth=3, tie_embeddings=False, learned_positions=8, rngs=nnx.Rngs(0))
    model = nnx.eval_shape(build)
    _, state = params.split(model)
    found = {path for path, is_matrix in flat(params.matrices(state)).items() if is_matrix}
    named = {"/".join(map(str, path)): node for path, node in nnx.iter_graph(model)}
    projections = (nn.Linear, nn.BlockDiagonal)
    marked = lambda node: not node.w.get_metadata().get("decay", True)
    wanted = {
        f"{path}/w"
        for path, node in named.items()
        if isinstance(node, projections) and path.startswith("stack/") and not marked(node)
    }
    assert wanted <= found and wanted
    assert not {path for path in found - wanted if not path.endswith("up")}, "neither a projection nor RWKV's low-rank blend"
    for path in found:
        own = params.own_axes(path, named[path])
        assert len(own) >= 2 and not {"vocab", "conv_kernel", "state"} & set(own)


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_moves_only_what_its_mask_names(name):
    """Lamb gives what decays the length of its parameter, the others shrink it by rate x decay."""
    settings = Optimizer(rule=f"{name}(weight_decay=0.5)", schedule="cosine(warmup_steps=0)", learning_rate=0.1)
    tx, values = make_optimizer(settings, 10, state()), nnx.to_pure_dict(state())
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, values), tx.init(values), values)
    for path, update in flat(updates).items():
        decays = SHAPES[path][2] and len(SHAPES[path][1]) > 1
        factor = (-0.1 if name == "lamb" else -0.05) if decays else 0.0
        np.testing.assert_allclose(update, factor * flat(values)[path], rtol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    ("accumulate_steps", "dtype", "name"), tiers.a_third(itertools.product(("1", "2"), ("float16", "bfloat16"), NAMES))
)
def test_parameters_of_half_precision_get_the_updates_of_float32(name, accumulate_steps, dtype):
    """Squared gradients of 1e-4, and an epsilon of 1e-8, are 0 in float16; so is what 0.999 leaves of a mean in bfloat16."""
    settings = Optimizer(rule=name, schedule="constant(warmup_steps=0)", accumulate_steps=accumulate_steps)
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), state())
    values, tx = nnx.to_pure_dict(narrow), make_optimizer(settings, 10, narrow)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), values)
    gradient = jax.tree.map(lambda leaf: (1e-4 * jnp.cos(7 * leaf)).astype(dtype), values)
    found, wanted = tx.init(values), tx.init(wide)
    assert all(leaf.dtype.itemsize >= 4 for leaf in jax.tree.leaves(found)), "a state of half precision"
    step = jax.jit(tx.update)
    for number in range(4):
        side = {"weight": jnp.ones(()), "step": jnp.asarray(number)}
        updates, found = step(gradient, found, values, **side)
        same, wanted = step(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient), wanted, wide, **side)
        assert_close(updates, same, what=f"{name}, {dtype}, step {number}")


def test_gradients_are_clipped_by_their_global_norm():
    """Adam's step ignores the gradient's scale, so the moments tell: mu = (1 - b1) g after one step."""
    matrix = nnx.State({"w": nnx.Param(jnp.zeros((3, 4)), axes=("embed", "heads"))})
    values = nnx.to_pure_dict(matrix)
    tx = make_optimizer(Optimizer(clip_norm=2.0, rule="adamw(b1=0.5, b2=0.5)"), 10, matrix)
    _, opt_state = tx.update({"w": jnp.full((3, 4), 5.0)}, tx.init(values), values)
    mu = next(leaf.mu for leaf in jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(leaf, "mu"))
    np.testing.assert_allclose(np.linalg.norm(mu["w"]), 0.5 * 2.0, rtol=1e-6)


def noise(steps, seed=0, **settings):
    """The noise that sgd without momentum adds to a clipped gradient of ones, by step: [steps, 300, 300]."""
    matrix = nnx.State({"w": nnx.Param(jnp.zeros((300, 300)), axes=("embed", "heads"))})
    values = nnx.to_pure_dict(matrix)
    plain = dict(rule="sgd(momentum=0.0, weight_decay=0.0)", schedule="constant(warmup_steps=0)", learning_rate=1.0)
    tx = make_optimizer(Optimizer(**plain, **settings), 10, matrix, seed)
    opt_state, update, found = jax.jit(tx.init)(values), jax.jit(tx.update), []
    for _ in range(steps):
        updates, opt_state = update({"w": jnp.ones((300, 300))}, opt_state, values)
        found.append(-np.asarray(updates["w"]) - 1 / 300)
    return np.stack(found)


def test_noise_has_the_variance_of_its_formula_after_the_clipping():
    found = noise(4, noise=0.09, noise_decay=0.8)
    np.testing.assert_allclose(found.var((1, 2)), 0.09 / (1 + np.arange(4)) ** 0.8, rtol=0.03)
    np.testing.assert_allclose(found.mean((1, 2)), 0.0, atol=5 * 0.3 / 300)


def test_noise_is_drawn_by_seed_and_step():
    one, again, other = noise(2, noise=0.09), noise(2, noise=0.09), noise(2, seed=1, noise=0.09)
    np.testing.assert_array_equal(one, again)
    pairs = [(one[0], one[1]), (one[0], other[0]), (one[0], one[0].T)]
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02 for a, b in pairs)


# Wide enough for Adafactor to keep rows and columns; guard, noise and accumulation have leaves in the state too.
WIDE = dict(model__d_model=128, optimizer__schedule="cosine(warmup_steps=0)", optimizer__noise=1e-4, optimizer__skip_limit=2)
WIDE |= dict(optimizer__accumulate_steps="0:1, 9:2")


def on_host(state):
    """Every leaf as an array of NumPy, keys as their data."""
    keys = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf) if keys(leaf) else leaf), state)


def stepped(setup):
    """A new state after one step."""
    with jax.set_mesh(setup.mesh):
        return training.train_step(setup)(training.initialise(setup), setup.task.spec(0))[0]


def whole(leaf):
    return leaf.shape


def piece(leaf):
    return leaf.sharding.shard_shape(leaf.shape)


MESHES = (
    pytest.param(dict(mesh__replica=2, mesh__fsdp=4), marks=pytest.mark.exhaustive, id="replica and fsdp"),
    pytest.param(dict(mesh__fsdp=4, mesh__tensor=2), marks=pytest.mark.slow, id="fsdp and tensor"),
)


@pytest.mark.parametrize("sizes", MESHES)
def test_optimizers_step_alike_on_one_device_and_on_eight_and_come_back_from_a_checkpoint(sizes, tmp_path, capfd):
    """No device holds more of the moments than its share, and XLA never gathers whole arrays, or it would say so."""
    for name in NAMES:
        one, eight = (training.prepare(tiny(**WIDE, optimizer__rule=name, **mesh)) for mesh in ({}, sizes))
        wanted, found = stepped(one), stepped(eight)
        assert_close(found["params"], wanted["params"], what=name)
        total, held = (sum(math.prod(shape(leaf)) for leaf in jax.tree.leaves(found["opt_state"])) for shape in (whole, piece))
        assert held <= total / 4 + 100, f"{name}: a device holds {held} of {total} numbers"

        checkpoints = training.Checkpoints(tmp_path / name)
        with checkpoints:
            checkpoints.resume(eight.abstract, print)
            checkpoints.save(found)
        again = checkpoints.restore(eight.abstract, print)
        jax.tree.map(np.testing.assert_array_equal, on_host(again), on_host(found))
        jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding, b.sharding), again, found)
    assert "Involuntary" not in capfd.readouterr().err


RATES = dict(adamw=1e-2, adamp=1e-2, lamb=2e-2, lion=2e-3, sgd=0.3, adafactor=3e-2, muon=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns(name, tmp_path):
    """Recall of two pairs, within 200 steps."""
    settings = dict(optimizer__rule=name, optimizer__learning_rate=RATES[name], training__steps=200, training__eval_every=200)
    experiment = tiny(**settings, model__d_model=32, model__depth=2, training__log_every=100, training__checkpoint_every=200)
    summary = training.train(experiment, tmp_path / name, console=quiet())
    for part in summary["final"].values():
        assert part["accuracy"] > 3 * part["chance"], summary["final"]
