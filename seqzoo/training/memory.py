"""Least memory of a run against the memory of its devices: sizes that cannot fit are refused before anything is allocated."""

from collections.abc import Iterable

from jax.sharding import Mesh
from rich.filesize import decimal

from seqzoo import config
from seqzoo.model.memory import bytes_on_device, device_memory
from seqzoo.tasks.base import BatchSpec

BATCH_BYTES = 12  # of a token of a batch: token, target and weight
LOGIT_BYTES = 4


def check(experiment: config.Experiment, mesh: Mesh, vocab_size: int, state: dict, specs: Iterable[tuple[BatchSpec, int]]) -> None:
    """Raises ValueError if the state, or the state with a batch and its logits, needs more memory than a device of the mesh has.

    This is the least that a step needs: it has no gradients, no activations inside the blocks and no temporaries. A device whose
    memory is not known is not checked.

    Args:
      experiment: model and training.
      mesh: of the devices.
      vocab_size: of the task.
      state: the training state, jax.ShapeDtypeStruct with shardings.
      specs: batches, each with the number of parts in which it is computed one after the other.
    """
    found = device_memory(mesh.devices.flat)
    if found is None:
        return
    held = {name: bytes_on_device(part) for name, part in state.items()}
    total = sum(held.values())
    if total > found:
        parts = ", ".join(f"{name} {decimal(size)}" for name, size in held.items() if size > 64)
        raise ValueError(
            f"the training state needs {decimal(total)} on each device ({parts}), which has {decimal(found)}; wanted a smaller "
            f"model.d_model, model.depth, vocabulary or task batch, another optimizer.rule, or more devices in mesh.fsdp"
        )
    for spec, parts in specs:
        rows, chunk = spec.batch / parts, min(experiment.training.loss_chunk or spec.length, spec.length)
        tokens, logits = BATCH_BYTES * spec.batch * spec.length, LOGIT_BYTES * rows * chunk * vocab_size
        least = total + int((tokens + logits) / mesh.size)
        if least > found:
            raise ValueError(
                f"task {experiment.task}, {spec.split!r}: a batch of {spec.batch:,} rows of {spec.length:,} tokens needs at least "
                f"{decimal(least)} on each device with its logits and the training state, which has {decimal(found)}; wanted fewer "
                f"rows or tokens in task, training.micro_batches, training.loss_chunk, or more devices in mesh"
            )
