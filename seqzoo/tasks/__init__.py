"""Tasks: sources of batches. Importing this package registers them; `create("mqar(pairs=8)")` builds one from its spec string."""

from seqzoo.tasks.base import BatchSpec, EvalSet, Task, register, registry
from seqzoo.tasks.mqar import MQAR
from seqzoo.tasks.parity import Parity
from seqzoo.tasks.text import Text

create = registry.create

__all__ = ["MQAR", "BatchSpec", "EvalSet", "Parity", "Task", "Text", "create", "register", "registry"]
