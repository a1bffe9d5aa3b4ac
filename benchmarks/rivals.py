"""Models of other projects, each paired with ours of the same weights, so that both compute the same function.

Their weights are saved in Hugging Face's layout, and `seqzoo.convert` reads them. Options of a peer that change its speed are set
to the fastest value on a CPU, or left at their defaults.
"""

import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import measure
from seqzoo import convert
from seqzoo.kernels.common import explain

VOCABULARY = 256
DEPTH = 2


class Absent(Exception):
    """A peer that cannot be built here, with the reason."""


class Size(NamedTuple):
    """Inputs of both sides."""

    batch: int
    length: int
    d_model: int
    seed: int


class Side(NamedTuple):
    """One of the two. A step returns the arrays to compare, and all other results that must be ready before the clock stops."""

    step: Callable[[], tuple[tuple, Any]]
    facts: dict[str, Any]  # for the record: parameters, settings, seconds to compile


class Pair(NamedTuple):
    """The same function twice."""

    ours: Side
    theirs: Side
    compared: str


class Peer(NamedTuple):
    """Another project's model or op. `build` raises ImportError or Absent where it cannot be had."""

    package: str
    build: Callable[[Size], Pair]
    slow: bool = False  # timed on shorter rows
    wanted: str = ""  # why it is built only when named

    def version(self) -> str | None:
        """Version of the installed package."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def cores() -> int:
    """Number of threads of both libraries: XLA takes as many as the process may run on, PyTorch is given the same number."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# Whole models: logits, and the gradient of the loss to the embedding, which comes through every layer.

AGREEMENT = "logits, and the gradient of the loss to the embedding"


def _rows(size: Size) -> np.ndarray:
    return np.random.default_rng(size.seed).integers(1, VOCABULARY, (size.batch, size.length + 1))


def _jax_side(logits, parameters, embedding, size: Size, **facts) -> Side:
    """logits(parameters, tokens) [b, t, vocabulary], compiled with its gradients; embedding(gradients) is that of the embedding."""

    def loss(parameters, rows):
        found = logits(parameters, rows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(found, rows[:, 1:]).mean(), found

    arrays = parameters, jnp.asarray(_rows(size), jnp.int32)
    executable, planned, seconds = measure.compiled(jax.jit(jax.value_and_grad(loss, has_aux=True)), arrays)

    def step():
        (_, found), gradients = executable(*arrays)
        return (found, embedding(gradients)), gradients

    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    return Side(step, {"parameters": count, "compile_seconds": seconds, "planned_bytes": planned, **facts})


def _ours(folder: Path, size: Size) -> Side:
    graphdef, parameters = nnx.split(convert.load(folder))
    logits = lambda parameters, tokens: nnx.merge(graphdef, parameters)(tokens)[0]
    decided = explain(logits, parameters, jax.ShapeDtypeStruct((size.batch, size.length), jnp.int32))
    return _jax_side(logits, parameters, lambda gradients: gradients["embedding"][...], size, ops=sorted(set(decided)))


def _noise(shape, size: Size, random) -> np.ndarray:
    """Added to every weight: at the usual initialisation, with zeros and ones in it, many a mistake looks like rounding."""
    scale = 0.2 * (32 / size.d_model) ** 0.5 if np.squeeze(np.empty(shape)).ndim >= 2 else 0.05
    return scale * random.standard_normal(shape).astype(np.float32)


# transformers


def _transformers(name: str, settings: Callable[[int], dict]) -> Callable[[Size], Pair]:
    """The model of that name, with these settings at a width."""

    def build(size):
        import torch
        import transformers

        if jax.default_backend() != "cpu":
            raise Absent(f"PyTorch is timed on CPUs only, and JAX runs on {jax.default_backend()}")
        transformers.utils.logging.set_verbosity_error()  # it says at every model that its CUDA kernels are not there
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(cores())
        torch.manual_seed(size.seed)
        kind = getattr(transformers, name)
        shared = {"vocab_size": VOCABULARY, "hidden_size": size.d_model, "num_hidden_layers": DEPTH}
        model = kind(kind.config_class(**shared, **settings(size.d_model))).train()  # none of them has dropout by default
        random = np.random.default_rng(size.seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.from_numpy(_noise(tuple(parameter.shape), size, random))
        rows = torch.from_numpy(_rows(size))
        embedding = model.get_input_embeddings().weight

        def step():
            model.zero_grad(set_to_none=True)
            logits = model(rows[:, :-1], use_cache=False).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
            return (logits.detach(), embedding.grad), None

        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            ours = _ours(Path(folder), size)
        count = sum(parameter.numel() for parameter in model.parameters())
        facts = {"parameters": count, "settings": settings(size.d_model), "threads": torch.get_num_threads()}
        return Pair(ours, Side(step, facts), AGREEMENT)

    return build


def _minimax(d):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": d // 4}
    experts = {"num_local_experts": 1, "num_experts_per_tok": 1}
    return {"layer_types": ["linear_attention"] * DEPTH, "intermediate_size": 4 * d, **heads, **experts}


def _mamba2(d):
    return {"head_dim": 64, "num_heads": 2 * d // 64, "state_size": 64, "n_groups": 1, "tie_word_embeddings": True}


def _recurrent_gemma(d):
    widths = {"lru_width": d, "intermediate_size": 6 * d}  # written as the sum of both halves
    return {"num_attention_heads": 4, "num_key_value_heads": 1, "block_types": ["recurrent"], **widths}


def _qwen3_5(d):
    width = 64
    heads = {"linear_num_key_heads": d // width, "linear_num_value_heads": d // width}
    widths = {"linear_key_head_dim": width, "linear_value_head_dim": width, "intermediate_size": 4 * d}
    return {"layer_types": ["linear_attention"] * DEPTH, **heads, **widths}


def _kimi_linear(d):
    kinds = {"layer_types": ["linear_attention"] * DEPTH, "mlp_layer_types": ["dense"] * DEPTH}
    return {**kinds, "linear_num_heads": d // 64, "linear_head_dim": 64, "intermediate_size": 4 * d, "pad_token_id": 0}


# Flax


def _saved(folder: Path, config: dict, tensors: dict) -> None:
    """A checkpoint folder in Hugging Face's layout."""
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(
        json.dumps({"vocab_size": VOCABULARY, "num_hidden_layers": DEPTH, **config}), encoding="utf-8"
    )
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors")


def _with_noise(parameters, size: Size):
    random = np.random.default_rng(size.seed)
    return jax.tree.map(lambda x: x + _noise(x.shape, size, random), parameters)


def _flat(tree: dict) -> dict[str, np.ndarray]:
    """Leaves by dotted path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}


def _flax_pair(logits, parameters, embedding, config: dict, tensors: dict, size: Size, **facts) -> Pair:
    with tempfile.TemporaryDirectory() as folder:
        _saved(Path(folder), config, tensors)
        ours = _ours(Path(folder), size)
    return Pair(ours, _jax_side(logits, parameters, embedding, size, **facts), AGREEMENT)


def _mamba2_jax(size: Size) -> Pair:
    import mamba2_jax

    settings = {"hidden_size": size.d_model, "state_size": 64, "head_dim": 64, "tie_word_embeddings": True}
    made = mamba2_jax.Mamba2Config(vocab_size=VOCABULARY, num_hidden_layers=DEPTH, **settings)
    graphdef, parameters = nnx.split(mamba2_jax.Mamba2ForCausalLM(made, rngs=nnx.Rngs(size.seed)))
    parameters = _with_noise(parameters, size)
    renamed = (("embedder.embedding", "embeddings.weight"), ("final_norm", "norm_f"), (".conv.", "."), ("kernel", "weight"))
    tensors = {}
    for name, x in _flat(nnx.to_pure_dict(parameters)).items():
        x = x.T if name.endswith("kernel") else x
        for theirs, published in renamed:
            name = name.replace(theirs, published)
        tensors[name] = x
    config = {"model_type": "mamba2", "num_heads": made.num_heads, "n_groups": 1, **settings}
    logits = lambda parameters, tokens: nnx.merge(graphdef, parameters)(tokens)["logits"]
    embedding = lambda gradients: gradients["backbone"]["embedder"]["embedding"][...]
    return _flax_pair(logits, parameters, embedding, config, tensors, size, settings=settings)


def _recurrentgemma(scan: str) -> Callable[[Size], Pair]:
    """Griffin of recurrent blocks alone, without the recomputation that is its default: neither side recomputes."""

    def build(size):
        import typeguard

        with mock.patch.object(typeguard, "typechecked", lambda function: function):  # it wants typeguard 2 to check shapes
            from recurrentgemma import common
            from recurrentgemma.jax import griffin

        d, published = size.d_model, _recurrent_gemma(size.d_model)
        settings = {
            "width": d,
            "mlp_expanded_width": published["intermediate_size"] // 2,
            "num_heads": published["num_attention_heads"],
            "lru_width": published["lru_width"],
            "embeddings_scale_by_sqrt_dim": True,
            "attention_window_size": 2048,
            "logits_soft_cap": 30.0,
        }
        kinds = {"block_types": (common.TemporalBlockType.RECURRENT,) * DEPTH, "scan_type": getattr(common.ScanType, scan)}
        model = griffin.Griffin(common.GriffinConfig(vocab_size=VOCABULARY, **settings, **kinds), gradient_checkpointing=False)
        position = lambda tokens: jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        logits = lambda parameters, tokens: model.apply(parameters, tokens, position(tokens), return_cache=False)[0]
        few = jnp.zeros((1, 8), jnp.int32)
        parameters = _with_noise(model.init(jax.random.key(size.seed), few, position(few), return_cache=False), size)
        config = {"model_type": "recurrent_gemma", "hidden_size": d, "tie_word_embeddings": True, **published}
        embedding = lambda gradients: gradients["params"]["embedder"]["input_embedding"]
        tensors = _published_griffin(_flat(parameters["params"]))
        return _flax_pair(logits, parameters, embedding, config, tensors, size, settings=settings | {"scan_type": scan})

    return build


def _published_griffin(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """DeepMind's names and layouts, as Hugging Face's."""
    renamed = {
        "blocks.": "model.layers.",
        "embedder.input_embedding": "model.embed_tokens.weight",
        "final_norm.scale": "model.final_norm.weight",
        "recurrent_block": "temporal_block",
        "norm.scale": "norm.weight",
        "conv_1d.w": "conv_1d.weight",
        "conv_1d.b": "conv_1d.bias",
        "a_param": "recurrent_param",
        "a_gate.": "recurrent_gate.",
        "gate.w": "gate_weight",
        "gate.b": "gate_bias",
        "ffw_down": "down_proj",
        "kernel": "weight",
    }
    made = {}
    for name, x in tensors.items():
        if name.endswith("kernel"):
            x = x.T
        for theirs, published in renamed.items():
            name = name.replace(theirs, published)
        if name.endswith("conv_1d.weight"):
            x = x.T[:, None]
        if ".ffw_up." in name:  # the gate's half, then the other
            for half, proj in zip(x, ("gate_proj", "up_proj"), strict=True):
                kind = {"w": "weight", "b": "bias"}[name[-1]]
                made[name.replace("ffw_up", proj)[:-1] + kind] = half.T if kind == "weight" else half.reshape(-1)
        else:
            made[name] = x
    return made


MODELS = {
    "transformers-mamba": Peer("transformers", _transformers("MambaForCausalLM", lambda d: {"state_size": 16}), slow=True),
    "transformers-mamba2": Peer("transformers", _transformers("Mamba2ForCausalLM", _mamba2)),
    "transformers-xlstm": Peer(
        "transformers", _transformers("xLSTMForCausalLM", lambda d: {"num_heads": 4, "autocast_kernel_dtype": "float32"})
    ),
    "transformers-minimax": Peer("transformers", _transformers("MiniMaxForCausalLM", _minimax)),
    "transformers-qwen3_5": Peer("transformers", _transformers("Qwen3_5ForCausalLM", _qwen3_5)),
    "transformers-kimi_linear": Peer("transformers", _transformers("KimiLinearForCausalLM", _kimi_linear)),
    "transformers-rwkv": Peer("transformers", _transformers("RwkvForCausalLM", lambda d: {})),
    "transformers-recurrent_gemma": Peer("transformers", _transformers("RecurrentGemmaForCausalLM", _recurrent_gemma)),
    "mamba2-jax": Peer("mamba2-jax", _mamba2_jax),
    "recurrentgemma": Peer("recurrentgemma", _recurrentgemma("ASSOCIATIVE_NATIVE")),
    "recurrentgemma-native": Peer("recurrentgemma", _recurrentgemma("LINEAR_NATIVE"), wanted="compiles for most of a minute"),
}
