"""RWKV-7 as flash-linear-attention 0.6.0 writes it (fla-hub/rwkv7-*); the authors' own files have other names."""

from seqzoo.convert.architecture import FLA, ModelMapping, architecture, prefixed
from seqzoo.convert.checkpoint import Config, ConvertError
from seqzoo.convert.rwkv6 import expansion, rwkv_eps, rwkv_stack
from seqzoo.convert.tensor_map import Rule, copy, joined, matrix, one_minus, optional
from seqzoo.specs import Spec

LOW_RANK = {"w": "decay", "a": "rate", "v": "first", "g": "gate"}


@architecture("rwkv7", "RWKV7ForCausalLM", FLA)
def rwkv7(config: Config) -> ModelMapping:
    """Blocks of RWKV-7's time mixing and channel mixing without a gate. The first layer has no value residual."""
    width, heads = _heads(config)
    eps = rwkv_eps(config)
    settings = {
        "heads": heads,
        "expand_v": _values(config) / config.get("hidden_size"),
        "decay_rank": _rank(config, "decay_low_rank_dim", 64, 2.5 * width / 64),
        "rate_rank": _rank(config, "a_low_rank_dim", 64, 2.5 * width / 64),
        "value_rank": _rank(config, "v_low_rank_dim", 16, 1.7 * width / 64),
        "gate_rank": _rank(config, "gate_low_rank_dim", 128, 5.0),
        "eps": width * eps,
        "key_eps": 1e-6 if config.get("fuse_norm", True) else 1e-24,  # unfused, the length itself is at least 1e-12
    }
    channel = f"rwkv(expansion={expansion(config, 4)}, gated=False)"
    layer = prefixed("attn.", _time_mixing()) | prefixed("ffn.", _channel_mixing())
    first = {name: optional(rule) if name.startswith("attn.v_lora.") else rule for name, rule in layer.items()}
    layers = [first] + [layer] * (config.get("num_hidden_layers") - 1)
    return rwkv_stack(config, str(Spec("rwkv7", tuple(settings.items()))), channel, layers)


def _heads(config: Config) -> tuple[int, int]:
    """(channels of a head, heads); num_heads is not read if head_dim is given."""
    d_model, width, heads = config.get("hidden_size"), config.get("head_dim", 64), config.get("num_heads", None)
    count = heads if width is None else d_model // width
    if not count or d_model % count or width not in (None, d_model // count):
        found = f"head_dim={width!r} and num_heads={heads!r}"
        raise ConvertError(f"{config.where}: {found} are not supported with hidden_size={d_model}, only a divisor of it")
    return d_model // count, count


def _values(config: Config) -> int:
    """Width of all values, given for the model or per layer; it must be equal, because later layers read the first one's values."""
    given = config.get("value_dim", None)
    each = set(given) if isinstance(given, list) else {config.get("hidden_size") if given is None else given}
    if len(each) > 1:
        raise ConvertError(f"{config.where}: value_dim={given!r} is not supported, only one width for all layers")
    return each.pop()


def _rank(config: Config, key: str, default: int, factor: float) -> int:
    """Inner width of a low-rank map; null: factor * sqrt(hidden_size), rounded to a multiple of 32."""
    rank = config.get(key, default)
    return max(32, 32 * round(factor * config.get("hidden_size") ** 0.5 / 32)) if rank is None else rank


def _time_mixing() -> dict[str, Rule]:
    names = {"r": "receptance", "k": "key", "v": "value", "o": "out"}
    low_rank = {}
    for theirs, ours in LOW_RANK.items():
        low_rank[f"{theirs}_lora.lora.0.weight"] = matrix(f"mixer.{ours}.down.w")
        low_rank[f"{theirs}_lora.lora.2.weight"] = matrix(f"mixer.{ours}.up.w")
        if theirs != "g":
            low_rank[f"{theirs}_lora.lora.2.bias"] = copy(f"mixer.{ours}.bias")
    return {
        **joined("mixer.mix", [f"x_{name}" for name in "rwkvag"], lambda x: x.reshape(6, -1)),
        **{f"{theirs}_proj.weight": matrix(f"mixer.{ours}.w") for theirs, ours in names.items()},
        **low_rank,
        "k_k": copy("mixer.removal"),
        "k_a": copy("mixer.replacement"),
        "r_k": copy("mixer.bonus"),
    }


def _channel_mixing() -> dict[str, Rule]:
    return {
        "x_k": one_minus("channel.mix_key"),
        "key.weight": matrix("channel.key.w"),
        "value.weight": matrix("channel.value.w"),
    }
