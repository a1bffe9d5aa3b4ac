"""Common parts of hybrids in transformers: layers of several kinds, each with a SwiGLU; one kind is softmax attention."""

from collections.abc import Callable, Mapping, Sequence

from seqzoo.convert.architecture import ModelMapping, prefixed
from seqzoo.convert.checkpoint import Config, ConvertError
from seqzoo.convert.tensor_map import Rule, copy, matrix, tied_to

SWIGLU = {f"mlp.{name}_proj.weight": matrix(f"channel.{name}.w") for name in ("gate", "up", "down")}
PROJECTIONS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out"}


def stack_mapping(
    config: Config,
    kinds: Sequence[str],
    specs: Mapping[str, str | None],
    rules: Mapping[str, Mapping[str, Rule]],
    *,
    norm_eps: float,
    scale: Callable[[str], Rule] = copy,
    prefix: str = "model.",
) -> ModelMapping:
    """Mapping of an embedding, blocks of the given kinds, a final norm and a head; an architecture adds its own settings.

    Args:
      kinds: of each layer; `specs`: mixer of each kind; `rules`: tensor map of each kind.
      norm_eps: of the norms; `scale`: rule for the scale of the final norm.
      prefix: of the names of all tensors but the head's.
    """
    tied = config.get("tie_word_embeddings", False)
    model = {
        "vocab_size": config.get("vocab_size"),
        "d_model": config.get("hidden_size"),
        "layers": tuple(specs[kind] for kind in shortest_period(kinds)),
        "depth": len(kinds),
        "channel": f"swiglu(hidden={config.get('intermediate_size')})",
        "norm_eps": norm_eps,
        "tie_embeddings": tied,
    }
    tensors = {
        f"{prefix}embed_tokens.weight": copy("embedding"),
        f"{prefix}norm.weight": scale("norm.scale"),
        "lm_head.weight": tied_to(f"{prefix}embed_tokens.weight") if tied else matrix("head.w"),
    }
    return ModelMapping(model, tensors, tuple(prefixed(f"{prefix}layers.{i}.", rules[kind]) for i, kind in enumerate(kinds)))


def layer_types(config: Config, known: Sequence[str], default: Sequence[str] | None = None) -> list[str]:
    """The kind of each layer; ConvertError for an unknown one. `default`: for an absent `layer_types`, if that is allowed."""
    depth, kinds = config.get("num_hidden_layers"), config.get("layer_types", *([] if default is None else [None]))
    kinds = list((default or ()) if kinds is None else kinds)
    if len(kinds) != depth or not set(kinds) <= set(known):
        raise ConvertError(f"{config.where}: layer_types={kinds!r}, wanted {depth} of {' and '.join(map(repr, known))}")
    return kinds


def attention(bias: bool = False) -> dict[str, Rule]:
    """The projections of softmax attention."""
    rules = {f"self_attn.{theirs}.weight": matrix(f"mixer.{ours}.w") for theirs, ours in PROJECTIONS.items()}
    return rules | ({f"self_attn.{theirs}.bias": copy(f"mixer.{ours}.b") for theirs, ours in PROJECTIONS.items()} if bias else {})


def shortest_period(kinds: Sequence[str]) -> Sequence[str]:
    """The shortest pattern whose cycles give `kinds`."""
    return next(kinds[:n] for n in range(1, len(kinds) + 1) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))
