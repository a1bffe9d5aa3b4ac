"""The section `training`: length of the run, loss, evaluation, early stopping, checkpoints and logging."""

from pydantic import Field

from seqzoo.config.base import Section


class Training(Section):
    """Length of the run, loss, evaluation, early stopping, checkpoints and logging."""

    steps: int = Field(1000, ge=1)
    """Training steps in all."""
    seed: int = 0
    """Seed of the initial parameters and of dropout. The data have their own seed, in the task."""
    micro_batches: int = Field(1, ge=1)
    """Gradient accumulation to save memory: number of parts into which a batch is cut, one after the other; the gradient is that of
    the whole batch. For updates of several batches: optimizer.accumulate_steps."""
    loss_chunk: int | None = Field(None, ge=1)
    """Tokens of a row whose logits exist at once; None: all. Fewer need less memory, and the head's product once more."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of the mean of log(Z)^2, Z the softmax's denominator, added to the cross-entropy."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay, at every step, of an exponential moving average of the parameters, which is then evaluated and loaded; None: no
    average."""
    eval_every: int = Field(250, ge=1)
    """Steps between evaluations; there is one at the end as well."""
    stop_above: float | None = Field(None, ge=0, lt=1)
    """Early stopping: end as soon as an evaluation's accuracy, averaged over evaluation sets, is above this; None: never. The
    schedule stays that of all steps."""
    stop_after_steps: int | None = Field(None, ge=1)
    """End each start of the run, with a checkpoint, after so many steps; `train.py resume` continues for as many again. The
    schedule stays that of all steps. None: continue to the end."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints; there is one at the end as well."""
    checkpoint_minutes: float | None = Field(None, gt=0)
    """Minutes after which there is a checkpoint even before checkpoint_every steps; None: steps alone decide."""
    keep: int = Field(2, ge=1)
    """Number of latest checkpoints to keep."""
    keep_best: bool = False
    """Keep the checkpoint of the best evaluation as well: highest mean accuracy, or for text fewest bits per byte."""
    log_every: int = Field(25, ge=1)
    """Steps between training lines in metrics.jsonl and, if the output is no terminal, on the console."""
    module_norms: bool = False
    """Add norms of gradient and parameters by module to these lines: embedding, mixer and channel of every layer, head."""


# Settings that a run may change while it is resumed: they change none of its numbers.
NUMERICALLY_NEUTRAL = {
    f"training.{name}" for name in ("stop_after_steps", "checkpoint_every", "checkpoint_minutes", "keep", "keep_best", "log_every")
}
