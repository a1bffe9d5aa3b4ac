"""Imported models against flash-linear-attention's own, which run their chunk kernels on rows of more than 64 tokens."""

import numpy as np
import pytest
from tolerances import RELATIVE, assert_close

from ..models import gradients, greedy, perturbed, tokens

pytestmark = [
    pytest.mark.fla,
    pytest.mark.filterwarnings("ignore:According to Bo:UserWarning"),
    pytest.mark.filterwarnings("ignore:The correction_factor is set:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # NumPy does not overflow in silence as a device does
    pytest.mark.filterwarnings("ignore:ChunkDeltaRuleFunction does not support float32 on some platforms:RuntimeWarning"),
]

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
HEADS = {"num_heads": 2, "head_dim": 16, "expand_v": 1.5}
FAMILIES = {  # settings beside the vocabulary
    "GLA": SMALL | {"num_heads": 2},
    "RetNet": SMALL | {"num_heads": 2},
    "HGRN2": SMALL | {"num_hidden_layers": 3, "expand_ratio": 16},
    "GSA": SMALL | {"num_heads": 2, "num_slots": 16},
    "RWKV6": SMALL | {"num_heads": 2, "proj_low_rank_dim": 8, "gate_low_rank_dim": 8},
    "DeltaNet": SMALL | {"num_heads": 2},
    "GatedDeltaNet": SMALL | HEADS,
    "Comba": SMALL | HEADS,
    "GatedDeltaProduct": SMALL | HEADS | {"num_householder": 2, "use_forget_gate": True, "allow_neg_eigval": True},
    "KDA": SMALL | HEADS,
    "RWKV7": SMALL | {"head_dim": 16, **{f"{name}_low_rank_dim": 8 for name in ("decay", "gate", "a", "v")}},
}

SEVERAL = {"HGRN2": "bounded", "Comba": "correction"}  # parameters of ours that are made of several weights of theirs
BAR = {"RWKV7": 5e-5}  # theirs by chunks are 2e-5 from float64, ours 3e-7
GRADIENT_BAR = {
    "RWKV6": 5e-5,  # in three batches theirs are 1e-5 to 2e-5 from float64, ours 2e-6 to 1e-5
    "Comba": 5e-5,  # theirs are 2e-5 from float64, ours 2e-6
    "GatedDeltaProduct": 5e-5,  # theirs are 2e-5 from float64, ours 5e-6
    "RWKV7": 2e-4,  # theirs are 1e-4 from float64, ours 8e-7
}


def pair(torch, fla, name, folder, **changes):
    """A perturbed model of theirs, and ours imported from where it was saved."""
    return perturbed(torch, getattr(fla("models"), f"{name}ForCausalLM"), FAMILIES[name] | changes, folder)


def bar(models):
    """The largest accepted error of logits."""
    return BAR.get(type(models.theirs).__name__.removesuffix("ForCausalLM"), RELATIVE["float32"])


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, torch, fla, tmp_path_factory):
    return pair(torch, fla, request.param, tmp_path_factory.mktemp(request.param))


def test_the_logits_are_theirs(torch, models):
    prompt = tokens(2, 70)
    assert_close(models.ours(prompt)[0], models.logits(torch, prompt), tolerance=bar(models))


def several_for_one(torch, name, models, got, wanted):
    """[(a weight of theirs, the gradient to it that follows from ours)] where one of ours is made of several, and takes it out."""
    if name not in SEVERAL:
        return []
    ours = SEVERAL[name]
    ((block, _),) = got["stack"]["periods"].items()
    gradient, _ = (tree["stack"]["periods"][block]["mixer"].pop(ours) for tree in (got, wanted))
    weights = {name: p.detach().double() for name, p in models.theirs.named_parameters()}
    if name == "HGRN2":
        gradient = gradient["logit"]
        np.testing.assert_array_equal(gradient[0], 0)  # the first layer has no bound
        table = weights["model.lower_bounds"].requires_grad_()
        torch.logit(table.softmax(0)[1:].cumsum(0)).backward(torch.from_numpy(np.array(gradient[1:], np.float64)))
        return [("model.lower_bounds", table.grad.numpy())]
    found = []
    for i, layer in enumerate(np.array(gradient, np.float64)):
        names = [f"model.layers.{i}.attn.{weight}" for weight in ("D", "decay")]
        d, decay = (weights[weight].requires_grad_() for weight in names)
        (d * decay.sigmoid()).backward(torch.from_numpy(layer))
        found += [(names[0], d.grad.numpy()), (names[1], decay.grad.numpy())]
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_of_the_loss_to_every_weight_is_theirs(torch, fla, tmp_path, name):
    """With an epsilon that keeps the gradient tame: the norm of a memory that a query hardly meets magnifies any rounding."""
    models = pair(torch, fla, name, tmp_path / "weights", norm_eps=1e-3)
    got, wanted, named = gradients(torch, models, tokens(1, 71), tmp_path)
    accepted = GRADIENT_BAR.get(name, RELATIVE["float32"])
    for weight, gradient in several_for_one(torch, name, models, got, wanted):
        assert_close(gradient, named[weight].numpy(), tolerance=accepted)
    assert_close(got, wanted, tolerance=accepted)


def test_the_greedy_continuation_is_theirs(torch, models):
    """Ours by prefill and single steps; theirs by full passes, across the 64 tokens up to which they run another kernel."""
    prompt = row = tokens(1, 62, seed=1)
    for _ in range(5):
        row = np.concatenate([row, models.logits(torch, row)[:, -1:].argmax(-1)], axis=1)
    np.testing.assert_array_equal(greedy(models.ours, prompt, 5), row[:, 62:])


def test_packed_documents_are_as_in_theirs(torch, models):
    ends = [0, 1, 31, 40, 75]
    row = tokens(1, ends[-1], seed=2)
    ids = np.repeat(np.arange(1, len(ends), dtype=np.int32), np.diff(ends))[None]
    theirs = models.logits(torch, row, cu_seqlens=torch.tensor(ends))
    assert_close(models.ours(row, segment_ids=ids)[0], theirs, tolerance=bar(models))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("GLA", {"fuse_norm": False, "tie_word_embeddings": True, "intermediate_size": None, "expand_k": 1.0, "norm_eps": 1e-2}),
        ("RetNet", {"expand_k": 0.5, "expand_v": 1.0, "norm_eps": 1e-2, "use_short_conv": True}),
        ("HGRN2", {"use_lower_bound": False, "expand_ratio": None, "num_heads": 4, "norm_eps": 1e-2}),
        ("GSA", {"num_slots": None, "gate_logit_normalizer": 4, "exapnd_k": 0.5, "norm_eps": 1e-2, "use_norm": False}),
        ("DeltaNet", {"allow_neg_eigval": True, "expand_k": 0.5, "expand_v": 2.0, "conv_size": 3, "norm_eps": 1e-2}),
        ("DeltaNet", {"attn_mode": "fused_recurrent", "use_output_norm": False}),
        ("GatedDeltaNet", {"allow_neg_eigval": True, "expand_v": 1.0, "conv_size": 2, "num_v_heads": 2, "norm_eps": 1e-2}),
        ("Comba", {"head_dim": 8, "use_inner_decay": False, "correction_factor": 0.02, "norm_eps": 1e-2, "fuse_norm": False}),
        ("GatedDeltaProduct", {"use_forget_gate": False, "allow_neg_eigval": False, "num_householder": 3, "norm_eps": 1e-2}),
        ("GatedDeltaProduct", {"num_householder": 1, "tie_word_embeddings": True}),
        ("KDA", {"allow_neg_eigval": True, "head_dim": 8, "expand_v": 2.0, "num_v_heads": 2, "norm_eps": 1e-2}),
        ("RWKV7", {"fuse_norm": False, "norm_first": False, "head_dim": None, "num_heads": 1, "norm_eps": 1e-2}),
        ("RWKV7", {"intermediate_size": None, "decay_low_rank_dim": None, "v_low_rank_dim": None, "num_heads": 3}),
        ("RWKV6", {"norm_first": False, "expand_k": 1.0, "expand_v": 2.0, "intermediate_size": None, "norm_eps": 1e-2}),
    ],
)
def test_other_settings_are_followed(torch, fla, tmp_path, name, changes):
    models, prompt = pair(torch, fla, name, tmp_path, **changes), tokens(1, 70)
    assert_close(models.ours(prompt)[0], models.logits(torch, prompt), tolerance=bar(models))
