"""The gradient to every weight against flash-linear-attention's, and models with other settings than the usual ones."""

import numpy as np
import pytest

from helpers.tolerances import RELATIVE, assert_close

from ..models import gradients, tokens
from .architectures import ARCHITECTURES, GRADIENT_BAR, MARKS, bar, pair

pytestmark = MARKS

SEVERAL = {"HGRN2": "bounded", "Comba": "query_correction"}  # parameters of ours that are made of several weights of theirs


def several_for_one(torch, name, models, got, wanted):
    """[(a weight of theirs, the gradient to it that follows from ours)] where one of ours is made of several, and takes it out."""
    if name not in SEVERAL:
        return []
    ours = SEVERAL[name]
    ((block, _),) = got["stack"]["scanned"].items()
    gradient, _ = (tree["stack"]["scanned"][block]["mixer"].pop(ours) for tree in (got, wanted))
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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_to_every_weight_equal_those_of_the_other_project(torch, fla, tmp_path, name):
    """With an epsilon that keeps the gradient tame: the norm of a memory that a query hardly meets magnifies any rounding."""
    models = pair(torch, fla, name, tmp_path / "weights", norm_eps=1e-3)
    got, wanted, named = gradients(torch, models, tokens(1, 71), tmp_path)
    accepted = GRADIENT_BAR.get(name, RELATIVE["float32"])
    for weight, gradient in several_for_one(torch, name, models, got, wanted):
        assert_close(gradient, named[weight].numpy(), tolerance=accepted)
    assert_close(got, wanted, tolerance=accepted)


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
