"""The section `training`: length of the run, loss, evaluation, early stopping, checkpoints and logging."""

from typing import Annotated

from pydantic import Field, model_validator

from seqzoo.config.base import Section
from seqzoo.specs import Length, NonNegative, Positive, Seed
from seqzoo.training.plateau import MIN_GAIN


class Training(Section):
    """Length of the run, loss, evaluation, early stopping, checkpoints and logging."""

    steps: Length = 1000
    """Training steps in all."""
    seed: Seed = 0
    """Seed of the initial parameters and of dropout. The data have their own seed, in the task; see `vary_data`."""
    vary_data: bool = False
    """Training examples differ with `seed` too: they are those of the task's seed hashed with it. Evaluation examples never do."""
    micro_batches: Length = 1
    """Gradient accumulation to save memory: number of parts into which a batch is cut, one after the other; the gradient is that of
    the whole batch. For updates of several batches: optimizer.accumulate_steps."""
    loss_chunk: Length | None = None
    """Tokens of a row whose logits exist at once; None: all. Fewer need less memory, and the head's product once more."""
    z_loss: NonNegative = 0.0
    """Weight of the mean of log(Z)^2, Z the softmax's denominator, added to the cross-entropy."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay, at every step, of an exponential moving average of the parameters, which is then evaluated and loaded; None: no
    average."""
    eval_every: Length = 250
    """Steps between evaluations; there is one at the end as well."""
    stop_above: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Solved: end as soon as an evaluation's accuracy, averaged over evaluation sets, is above this; None: never. The schedule
    stays that of all steps."""
    patience: Length | None = None
    """Plateau: end after this many evaluations in a row without a gain; None: never. Some tasks show nothing for thousands of steps
    and are then learned (MQAR): patience times eval_every must be longer than that. The schedule stays that of all steps."""
    min_gain: Annotated[float, Field(gt=0, lt=1)] = MIN_GAIN
    """Size of a gain, over the last one: mean validation accuracy higher by this, or mean validation loss lower by this fraction;
    formula: seqzoo/training/plateau.py. A schedule that decays, such as cosine, flattens every curve at its end: a run that would
    learn on at a constant rate may look finished."""
    stop_after_steps: Length | None = None
    """End the run, with a checkpoint, after this many steps from its start; `train.py resume` continues for as many again. The
    schedule stays that of all steps. None: continue to the end."""
    checkpoint_every: Length = 500
    """Steps between checkpoints; there is one at the end as well."""
    checkpoint_minutes: Positive | None = None
    """Minutes after which there is a checkpoint even before checkpoint_every steps; None: steps alone decide."""
    keep: Length = 2
    """Number of latest checkpoints to keep."""
    keep_best: bool = False
    """Keep the checkpoint of the best evaluation as well: highest mean accuracy, or for text fewest bits per byte."""
    log_every: Length = 25
    """Steps between training lines in metrics.jsonl and, if the output is not a terminal, on the console."""
    module_norms: bool = False
    """Add norms of gradient and parameters by module to these lines: embedding, mixer and channel of every layer, head."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self):
        if self.patience is None and self.min_gain != MIN_GAIN:
            found = f"min_gain={self.min_gain!r} has no use with patience=None"
            raise ValueError(f"{found}; wanted min_gain={MIN_GAIN!r}, or a patience")
        return self


# Settings that a run may change while it is resumed: they change none of its numbers.
NUMERICALLY_NEUTRAL = {
    f"training.{name}" for name in ("stop_after_steps", "checkpoint_every", "checkpoint_minutes", "keep", "keep_best", "log_every")
}
