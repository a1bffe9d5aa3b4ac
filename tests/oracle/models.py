"""Tiny models of transformers, one per architecture that we import, with noise on every weight.

Without the noise much is hidden: at the usual initialisation several wrong continuations look like rounding.
"""

import copy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqzoo import convert
from seqzoo.model import LanguageModel

VOCAB = 97
ARCHITECTURES = {  # class of the model, and its settings except the vocabulary
    "mamba": ("MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "mamba2": (
        "Mamba2ForCausalLM",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 16,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "xlstm": (
        "xLSTMForCausalLM",
        {"hidden_size": 128, "num_hidden_layers": 2, "num_heads": 4, "chunk_size": 16, "autocast_kernel_dtype": "float32"},
    ),
    "minimax": (
        "MiniMaxForCausalLM",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 48,
            "block_size": 16,
            "num_local_experts": 1,
            "num_experts_per_tok": 1,
            **{f"{name}_alpha_factor": 3.5565588200778455 for name in ("linear_attn", "full_attn", "mlp")},  # the released model's
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        {
            "hidden_size": 32,
            "num_hidden_layers": 4,  # a period and the first layer of the next
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "lru_width": 48,
            "attention_window_size": 16,
            "intermediate_size": 96,
        },
    ),
    "qwen3_5_text": (
        "Qwen3_5ForCausalLM",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_value_head_dim": 12,
            "intermediate_size": 48,
            "rms_norm_eps": 1e-3,
        },
    ),
    "olmo_hybrid": (
        "OlmoHybridForCausalLM",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_num_value_heads": 4,
            "linear_value_head_dim": 8,  # all values as wide as all keys: other files are saved wrong
            "intermediate_size": 48,
            "rope_parameters": {"rope_type": "default", "rope_theta": None},  # no positions, as in the released model
            "pad_token_id": 0,
        },
    ),
    "kimi_linear": (
        "KimiLinearForCausalLM",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention"] * 2,
            "mlp_layer_types": ["dense"] * 2,
            "linear_num_heads": 4,
            "linear_head_dim": 8,
            "intermediate_size": 48,
            "pad_token_id": 0,
        },
    ),
    "rwkv": ("RwkvForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 256}),
}


class Pair(NamedTuple):
    """The same weights in two projects, and the folder they went through."""

    ours: LanguageModel
    theirs: object
    folder: object

    def logits(self, torch, tokens, **arguments):
        """transformers' logits of a full pass, without a cache: [b, t, vocab]."""
        with torch.no_grad():
            return self.theirs(torch.from_numpy(tokens), use_cache=False, **arguments).logits.numpy()


def pair(torch, name, folder, **changes):
    """A perturbed model, saved as a checkpoint folder and imported from there."""
    import transformers

    kind, settings = ARCHITECTURES[name]
    kind = getattr(transformers, kind)
    return perturbed(torch, kind, {**settings, **changes}, folder)


def perturbed(torch, kind, settings, folder):
    """A model of the class `kind` with noise on every weight, and ours, which went through `folder`."""
    theirs = saved(torch, kind, settings, folder)
    return Pair(convert.load(folder), theirs, folder)


def saved(torch, kind, settings, folder):
    """A model of the class `kind` with noise on every weight, saved in `folder`."""
    torch.manual_seed(0)
    theirs = kind(kind.config_class(vocab_size=VOCAB, **settings)).eval()
    matrix = 0.2 * (32 / theirs.config.hidden_size) ** 0.5  # the same spread of sums at any width
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += torch.randn_like(parameter) * (matrix if parameter.squeeze().ndim >= 2 else 0.05)
    theirs.save_pretrained(folder)
    return theirs


def gradients(torch, models, inputs, folder):
    """Gradients of the loss to every weight: ours and theirs as trees of our parameters, then theirs by their own names.

    Their gradients go through saving and importing like weights: where a weight lands, its gradient does.
    """
    model = copy.deepcopy(models.theirs)
    logits = model(torch.from_numpy(inputs[:, :-1]), use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(inputs[:, 1:]).flatten()).backward()
    named = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    def imported(name, value):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(value(parameter))
        model.save_pretrained(folder / name)
        return nnx.to_pure_dict(nnx.state(convert.load(folder / name)))

    # An importer may add a constant (1 + w): the difference to what zeros give has none.
    imported_gradients = imported("gradients", lambda parameter: parameter.grad)
    wanted = jax.tree.map(np.subtract, imported_gradients, imported("zeros", torch.zeros_like))

    def loss(model):
        log_p = jax.nn.log_softmax(model(inputs[:, :-1])[0])
        return -jnp.mean(jnp.take_along_axis(log_p, inputs[:, 1:, None], axis=-1))

    return nnx.to_pure_dict(nnx.state(jax.jit(jax.grad(loss))(models.ours))), wanted, named


def tokens(batch, length, seed=0):
    """Random token ids."""
    return np.random.default_rng(seed).integers(1, VOCAB, (batch, length))


@jax.jit
def advance(model, tokens, state):
    """(logits, the state after these tokens)."""
    return model(tokens, state=state)


def greedy(model, prompt, count, max_length=128):
    """`count` most likely tokens: the prompt in one call, then token by token, the state carried."""
    logits, state = advance(model, prompt, model.init_state(len(prompt), max_length))
    chosen = [jnp.argmax(logits[:, -1], axis=-1)]
    for _ in range(count - 1):
        logits, state = advance(model, chosen[-1][:, None], state)
        chosen.append(jnp.argmax(logits[:, -1], axis=-1))
    return np.stack(chosen, axis=1)
