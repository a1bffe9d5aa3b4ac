"""RWKV-4 (RWKV/rwkv-4-*-pile; transformers' RwkvForCausalLM)."""

from seqzoo.convert.architecture import ModelMapping, architecture, prefixed
from seqzoo.convert.checkpoint import Config
from seqzoo.convert.tensor_map import copy, matrix, ravel, tied_to

# rescale_every halves the residual stream every few layers, and the weights with it, for the range of float16; it changes
# only the relative size of the norms' epsilon. transformers does not do it in training.
WITHOUT_EFFECT = ("context_length", "rescale_every")


@architecture("rwkv", "RwkvForCausalLM")
def rwkv(config: Config) -> ModelMapping:
    """Pre-norm blocks of time mixing and channel mixing; the norm of the embedding is stored in the first block."""
    d_model, depth = config.get("hidden_size"), config.get("num_hidden_layers")
    hidden = config.get("intermediate_size", None) or 4 * d_model
    config.only("attention_hidden_size", d_model, None)
    tied = config.get("tie_word_embeddings", False)
    model = {
        "vocab_size": config.get("vocab_size"),
        "d_model": d_model,
        "layers": ("rwkv4",),
        "depth": depth,
        "channel": f"rwkv(expansion={hidden / d_model})",
        "norm": "layer",
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "embedding_norm": True,
        "tie_embeddings": tied,
    }
    tensors = {
        "rwkv.embeddings.weight": copy("embedding"),
        "rwkv.blocks.0.pre_ln.weight": copy("embedding_norm.scale"),
        "rwkv.blocks.0.pre_ln.bias": copy("embedding_norm.bias"),
        "rwkv.ln_out.weight": copy("norm.scale"),
        "rwkv.ln_out.bias": copy("norm.bias"),
        "head.weight": tied_to("rwkv.embeddings.weight") if tied else matrix("head.w"),
    }
    layer = {
        "ln1.weight": copy("mixer_norm.scale"),
        "ln1.bias": copy("mixer_norm.bias"),
        "ln2.weight": copy("channel_norm.scale"),
        "ln2.bias": copy("channel_norm.bias"),
        "attention.time_decay": copy("mixer.time_decay"),
        "attention.time_first": copy("mixer.time_first"),
        "attention.time_mix_key": ravel("mixer.mix_key"),
        "attention.time_mix_value": ravel("mixer.mix_value"),
        "attention.time_mix_receptance": ravel("mixer.mix_receptance"),
        "attention.key.weight": matrix("mixer.key.w"),
        "attention.value.weight": matrix("mixer.value.w"),
        "attention.receptance.weight": matrix("mixer.receptance.w"),
        "attention.output.weight": matrix("mixer.out.w"),
        "feed_forward.time_mix_key": ravel("channel.mix_key"),
        "feed_forward.time_mix_receptance": ravel("channel.mix_receptance"),
        "feed_forward.key.weight": matrix("channel.key.w"),
        "feed_forward.value.weight": matrix("channel.value.w"),
        "feed_forward.receptance.weight": matrix("channel.receptance.w"),
    }
    config.ignore(*WITHOUT_EFFECT)
    return ModelMapping(model, tensors, tuple(prefixed(f"rwkv.blocks.{i}.", layer) for i in range(depth)))
