"""Many runs side by side: `run(comparison, folder)` trains the missing runs and writes table, report and figures; `show` lists the
runs without training."""

from seqzoo.compare.estimate import show_estimate
from seqzoo.compare.grid import check, grid_points, group_by_label, show
from seqzoo.compare.jobs import check as check_jobs
from seqzoo.compare.runner import run
from seqzoo.compare.summary import Row, summarise

__all__ = ["Row", "check", "check_jobs", "grid_points", "group_by_label", "run", "show", "show_estimate", "summarise"]
