"""Training against transformers: the same weights, batches and AdamW give the same loss at every step."""

import json

import jax
import numpy as np
import pytest

from seqzoo import convert, tasks
from seqzoo.config import Experiment, Model, Optimizer, Training
from seqzoo.training import train

pytestmark = pytest.mark.oracle

# Found: 1.4e-6. At 1e-3 no mistake would show: Adam's eps at 1e-7 moves a loss by 8e-5, weight decay at 0.09 by 6e-5, all biases of
# the step size by 0.05 more by 1e-5 (gated delta rule) and 4e-4 (Mamba).
TOLERANCE = 1e-5
STEPS = 200
TASK = "mqar(vocab_size=64, length=16, pairs=4, batch_size=16, eval_examples=16)"
MODELS = {  # class of the model, its settings, and the names of its parameters with two axes or more that nothing decays
    "mamba": ("MambaForCausalLM", {"state_size": 8}, ("A_log",)),
    "mamba2": ("Mamba2ForCausalLM", {"state_size": 16, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16}, ()),
    "qwen3_5_text": (
        "Qwen3_5ForCausalLM",
        {
            "layer_types": ["linear_attention"] * 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_num_value_heads": 2,
            "linear_value_head_dim": 16,
            "intermediate_size": 64,
        },
        (),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_losses_equal_those_of_the_other_project_at_every_step(torch, tmp_path, name):
    import transformers

    kind, settings, not_decayed = MODELS[name]
    kind = getattr(transformers, kind)
    torch.manual_seed(0)
    theirs = kind(kind.config_class(vocab_size=64, hidden_size=32, num_hidden_layers=2, **settings))
    theirs.save_pretrained(tmp_path / "start")
    wanted = their_losses(torch, theirs, not_decayed)
    assert wanted[-1] < wanted[0] - 0.5
    got = our_losses(tmp_path)
    worst = np.argmax(np.abs(got - wanted))
    assert abs(got[worst] - wanted[worst]) < TOLERANCE, f"step {worst}: {got[worst]} here, {wanted[worst]} in transformers"


def our_losses(folder):
    """Losses of a run of ours from the checkpoint folder/start."""
    fields = {name: value for name, value in convert.settings(folder / "start").items() if name in Model.model_fields}
    experiment = Experiment(
        model=Model(**fields, init_from=str(folder / "start")),
        task=TASK,
        optimizer=Optimizer(
            rule="adamw(b2=0.95, eps=1e-8, weight_decay=0.1)",
            learning_rate=1e-3,
            schedule="constant(warmup_steps=0)",
            clip_norm=None,
        ),
        training=Training(steps=STEPS, eval_every=STEPS, checkpoint_every=STEPS, log_every=1),
    )
    train(experiment, folder / "run")
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return np.array([line["loss"] for line in lines if "gradient_norm" in line])


def their_losses(torch, model, not_decayed):
    """Losses of the same run in PyTorch; weight decay on arrays with two axes or more, as is usual and as we do."""
    task = tasks.registry.create(TASK)
    make = jax.jit(task.batch, static_argnums=0)
    batches = [jax.device_get(make(task.spec(step), step)) for step in range(STEPS)]
    decayed = lambda name, parameter: parameter.ndim >= 2 and not name.endswith(not_decayed)
    named = list(model.named_parameters())
    groups = [
        {"params": [parameter for name, parameter in named if decayed(name, parameter) == decays], "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]
    adamw, losses = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8), []
    for batch in batches:
        tokens, targets, weights = (torch.from_numpy(np.array(batch[name])) for name in ("tokens", "targets", "weights"))
        logits = model(tokens.long(), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[weights > 0], targets[weights > 0].long())
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        losses.append(loss.item())
    return np.array(losses)
