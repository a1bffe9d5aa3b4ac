"""Many runs side by side: `run(comparison, folder)` trains whatever is missing and writes table, report and pictures; `show` lists
what it would train."""

from seqzoo.compare.grid import alike, cells, show
from seqzoo.compare.runner import run
from seqzoo.compare.summary import Row, summarise

__all__ = ["Row", "alike", "cells", "run", "show", "summarise"]
