"""A job that `--submit` ships to another process finds fairchem and the plugin there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
from conftest import make_config
from fairchem.core import _cli
from helpers_cluster import write_config

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


def test_training_that_diverges_ends_with_a_sentence(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tiny_data, tmp_path, lr_initial=1e9, clip_grad_norm=None)
    flags = ["--mode", "train", "--cpu", "--run-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        launch.main([*flags, "--config-yml", str(write_config(tmp_path, config))])
    assert end.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "diverged" in line]
    assert line.startswith("main.py: loss_")
    assert "optim.lr_initial" in line
