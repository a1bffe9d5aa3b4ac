"""Many runs side by side: `run(comparison, folder)` trains whatever is missing and writes table, report and pictures."""

from seqzoo.compare.runner import run
from seqzoo.compare.summary import Row, summarise

__all__ = ["Row", "run", "summarise"]
