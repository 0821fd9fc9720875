"""Full speed on a CPU: numbers too small to matter are zero, and freed memory stays with the process.

Envelopes and Gaussians of the radial bases underflow to subnormal numbers, which many processors multiply in
microcode. With the example's PaiNN they made up most of a step: 177 ms against 38 ms once they are flushed to zero.

glibc gives large blocks back to the operating system as soon as they are freed and asks for them again in the
next training step, and each of their pages then costs a fault. With the two or three configurations of a
PIWSL step that came to half of the step's time: 83 ms against 42 ms for the example's PaiNN on two cores.
"""

import ctypes
import sys

import numpy as np
import torch

# from malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = 2**31 - 1
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more


def full_speed() -> None:
    """Flush subnormal numbers to zero in this thread and those it starts, and keep freed memory."""
    for dtype in (np.float32, np.float64):
        _ = np.finfo(dtype).smallest_subnormal  # numpy warns if it first looks for one when there is none
    torch.set_flush_denormal(True)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks of up to 32 MiB for the next step; returns whether it agreed.

    Peak memory does not change. Other allocators (macOS, musl) are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _NEVER))
