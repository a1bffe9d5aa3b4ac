"""Where batches come from. Importing this package enrols the tasks; `create("mqar(pairs=8)")` builds one from its spec string."""

from seqzoo.tasks.base import BatchSpec, Slice, Task, register, registry
from seqzoo.tasks.mqar import MQAR
from seqzoo.tasks.parity import Parity

create = registry.create

__all__ = ["MQAR", "BatchSpec", "Parity", "Slice", "Task", "create", "register", "registry"]
