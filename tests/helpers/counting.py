"""A task whose batches are read on the host, small and predictable: row r of batch s counts on from batch s - 1."""

import threading
from typing import ClassVar

import numpy as np

from seqzoo import tasks
from seqzoo.tasks import BatchSpec, EvalSet


@tasks.registry.register("counting")
class Counting(tasks.Task):
    """Token t of row r of batch s is (a r + s length + t) mod 16; a document ends every `document` tokens."""

    on_host: ClassVar[bool] = True
    length: int = 8
    batch_size: int = 8
    document: int = 5
    bad: int | None = None  # the batch whose weights are infinite
    stream: bool = False

    @property
    def vocab_size(self):
        return 16

    @property
    def stateful(self):
        return self.stream

    @property
    def max_length(self):
        return self.length

    def spec(self, step):
        return BatchSpec("train", 0, self.batch_size, self.length)

    def rows(self, spec, index, rows):
        READERS.add(threading.current_thread().name)
        at = index * self.length + np.arange(self.length + 1)[None]
        tokens = ((3 * np.arange(spec.batch)[rows, None] + at) ** 2 % 16).astype(np.int32)
        segments = np.broadcast_to(1 + at[:, :-1] // self.document, tokens[:, :-1].shape).astype(np.int32)
        weights = (tokens[:, :-1] + np.arange(spec.batch)[rows, None]) % 3 / 2 + (np.inf if index == self.bad else 0)
        return {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "segment_ids": segments,
            "weights": weights.astype(np.float32),
        }

    def eval_sets(self):
        spec = BatchSpec("held", 0, self.batch_size, self.length)
        return (EvalSet(f"length={self.length}", spec, 2, None, {"length": self.length}, bytes_per_target=2.0),)

    def fingerprint(self):
        return {"counting": FINGERPRINT[0]}


READERS: set[str] = set()  # names of the threads that read
FINGERPRINT = ["sha256:0"]
