"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHURN = """
import resource, torch
from fairchem_piwsl.training.cpu_memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def churn():
    for _ in range(5):
        blocks = [torch.ones(2**18) for _ in range(50)]  # 50 MiB in all, then freed
        del blocks
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    result = subprocess.run(
        [sys.executable, "-c", CHURN.format(keep=keep)], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_blocks_are_used_again():
    # 50 MiB are 12,800 pages a round; a few may have been reclaimed by the system in between
    assert page_faults(keep=True) < 2_000


def test_other_allocators_are_left_alone(monkeypatch):
    from fairchem_piwsl.training import cpu_memory

    monkeypatch.setattr(cpu_memory.sys, "platform", "darwin")
    assert cpu_memory.keep_freed_memory() is False
