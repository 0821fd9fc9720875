"""The script that measures step times of all models; `tests/training/test_bench.py` has the measurement itself."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import bench_models

from fairchem_piwsl.config import read_config


def test_each_model_and_batch_is_measured_and_written_at_once(tmp_path, monkeypatch):
    out = tmp_path / "step_times.json"
    seen = []

    def run(command, cwd, check):
        options = dict(itertools.pairwise(command))
        config = read_config(cwd / options["--config-yml"], [command[-1]], None)
        written = json.loads(out.read_text())["runs"] if out.exists() else []
        seen.append((config["optim"]["batch_size"], len(written)))
        Path(options["--json"]).write_text(json.dumps({"model": config["model"]["name"]}))

    monkeypatch.setattr(bench_models.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["bench_models.py", "--models", "painn", "mace", "--out", str(out)])
    bench_models.main()
    assert seen == [(16, 0), (16, 1), (6, 2), (6, 3)]
    runs = json.loads(out.read_text())["runs"]
    assert [run["model"] for run in runs] == ["painn", "mace"] * 2
    assert all(run["data"] == run["trained_on"] == "rmd17_aspirin_100" for run in runs)
