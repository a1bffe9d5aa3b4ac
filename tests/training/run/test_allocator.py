"""Memory that a program keeps between steps."""

import platform
import subprocess
import sys

import pytest

ROUNDS = """
import resource, sys
from seqzoo.training.run.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for count in range(11):
    if count == 1:
        begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b'x' * 48_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_a_block_of_the_size_of_a_steps_temporaries_costs_page_faults_only_once():
    run = lambda word: subprocess.run([sys.executable, "-c", ROUNDS, word], capture_output=True, text=True, check=True)
    faults = lambda word: int(run(word).stdout)
    assert faults("kept") < 1000 < 10_000 < faults("given back")
