"""A job that `--submit` ships to another process finds fairchem and the plugin there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cloudpickle
from fairchem.core import _cli

from fairchem_piwsl.jobs import launch

WORKER = """
import pickle, sys
sys.modules["torch_scatter"] = sys.modules["torch_sparse"] = None  # as if neither were installed
job = pickle.load(open(sys.argv[1], "rb"))
from fairchem.core.common.registry import registry
print(type(job).__name__, registry.get_trainer_class("piwsl_forces").__name__)
"""


def test_submitted_job_brings_the_plugin_along(tmp_path: Path) -> None:
    assert _cli.Runner is launch.Runner
    (tmp_path / "job.pkl").write_bytes(cloudpickle.dumps(_cli.Runner()))
    done = subprocess.run(
        [sys.executable, "-c", WORKER, tmp_path / "job.pkl"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == ["Runner", "PIWSLForcesTrainer"], done.stderr[-2000:]
