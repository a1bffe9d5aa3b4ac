"""The section `training`: how long, and how often to look."""

from pydantic import Field

from seqzoo.config.base import Section


class Training(Section):
    """How long, and how often to look, to say and to save."""

    steps: int = Field(1000, ge=1)
    """Optimizer steps in all."""
    seed: int = 0
    """Of the initial parameters and of dropout. The data have their own seed, in the task."""
    micro_batches: int = Field(1, ge=1)
    """Into how many micro-batches a batch is cut, one after the other: memory of one, the gradient of the whole batch."""
    loss_chunk: int | None = Field(None, ge=1)
    """Tokens of a row whose logits are there at once; None: all. Fewer need less memory, and the head's product once more."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of the mean of log(Z)^2, Z the softmax's denominator, beside the cross-entropy."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay, at every step, of a running mean of the parameters, which is what is then evaluated and loaded; None: none is kept."""
    eval_every: int = Field(250, ge=1)
    """Steps between evaluations; there is one at the end as well."""
    stop_above: float | None = Field(None, ge=0, lt=1)
    """End as soon as an evaluation's accuracy, averaged over evaluation sets, is above this; None: never. The schedule stays that
    of all steps."""
    stop_after_steps: int | None = Field(None, ge=1)
    """End this start of the run, with a checkpoint, after so many steps of it; `train.py resume` goes on for as many again. The
    schedule stays that of all steps. None: go on to the end."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints; there is one at the end as well."""
    checkpoint_minutes: float | None = Field(None, gt=0)
    """Minutes after which there is a checkpoint even if checkpoint_every steps are not over; None: steps alone decide."""
    keep: int = Field(2, ge=1)
    """How many of the latest checkpoints to keep."""
    keep_best: bool = False
    """Whether the checkpoint of the best evaluation stays as well: highest mean accuracy, or of text fewest bits per byte."""
    log_every: int = Field(25, ge=1)
    """Steps between training lines in metrics.jsonl and, where the output is no terminal, on the console."""
    module_norms: bool = False
    """Whether these lines have norms by module, of gradient and parameters: embedding, mixer and channel of every layer, head."""


# What a run may change on its way without changing a number of it.
NUMERICALLY_NEUTRAL = {
    f"training.{name}" for name in ("stop_after_steps", "checkpoint_every", "checkpoint_minutes", "keep", "keep_best", "log_every")
}
