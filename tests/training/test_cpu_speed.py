"""Subnormal numbers are zero, and freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHURN = """
import resource, torch
from fairchem_piwsl.training.cpu_speed import keep_freed_memory
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
    from fairchem_piwsl.training import cpu_speed

    monkeypatch.setattr(cpu_speed.sys, "platform", "darwin")
    assert cpu_speed.keep_freed_memory() is False


def test_subnormal_numbers_become_zero_without_a_warning():
    code = """
import warnings
warnings.simplefilter("error")
import torch
from fairchem_piwsl.training.cpu_speed import full_speed
full_speed()
small = torch.full((2048, 64), 1e-30)
print((small * 1e-10).count_nonzero().item())
import numpy as np
np.finfo(np.float32), np.finfo(np.float64)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "0"
