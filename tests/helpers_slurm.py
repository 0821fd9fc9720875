"""A SLURM of the tests' own, and helpers to wait for what happens in it."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "slurm" / "start_slurm.sh"
#: seconds that anything may take on a busy machine
PATIENCE = 900


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    """Two nodes on this machine; the tests are skipped, with the reason, where they cannot be started."""
    folder = Path(tempfile.mkdtemp(prefix="piwsl-slurm-"))
    folder.chmod(0o755)
    done = subprocess.run(
        ["bash", SCRIPT, "start", folder],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "SLURM_TEST_PORT": str(free_ports())},
    )
    if done.stdout.split()[-1:] != ["ready"]:
        subprocess.run(["bash", SCRIPT, "stop", folder], capture_output=True)
        pytest.skip(f"no SLURM here: {(done.stderr.strip().splitlines() or ['unknown reason'])[-1]}")
    old = dict(os.environ)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield folder
    subprocess.run(["scancel", "--user", str(os.getuid())], check=False)
    subprocess.run(["bash", SCRIPT, "stop", folder], capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.environ.clear()
    os.environ.update(old)


def free_ports() -> int:
    """First of 20 ports that no one listens on, so that clusters of several test runs do not meet."""
    for first in random.sample(range(40_000, 60_000, 20), 100):
        try:
            for port in range(first, first + 20):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The first true value of `condition`, asked every 0.2 s."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not happen within {seconds} s")


def queue(*columns: str) -> list[list[str]]:
    """`squeue`'s rows, with the job's number first."""
    form = "|".join(["%i", *columns])
    done = subprocess.run(["squeue", "-h", "-r", "-o", form], capture_output=True, text=True, check=False)
    if done.returncode != 0:  # a busy controller: not known
        return [["?"] * (len(columns) + 1)]
    return [line.split("|") for line in done.stdout.splitlines()]


def preempt(job: str) -> None:
    """The signals of a preemption."""
    for name in ("TERM", "USR2"):
        subprocess.run(["scancel", "--signal", name, job], check=True)
