"""Where batches come from. Importing this package enrols the tasks; `create("mqar(pairs=8)")` builds one from its spec string."""

from seqzoo.tasks.base import BatchSpec, Slice, Task, register, registry
from seqzoo.tasks.mqar import MQAR

create = registry.create

__all__ = ["MQAR", "BatchSpec", "Slice", "Task", "create", "register", "registry"]
