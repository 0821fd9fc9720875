"""A sweep on disk as it was written before the sweep file became a pydantic model still loads and goes on.

Made by the code of then: four trials ended, one whose worker was killed in the middle, one that waits; numbers as
text (`1e-3`), a study's name with spaces, conditions, empty entries.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fairchem_piwsl.sweeps import launcher
from fairchem_piwsl.sweeps.folder import load_folder
from fairchem_piwsl.sweeps.results import best_config, open_sweep, summary
from fairchem_piwsl.sweeps.study import check_same_space, counts, slots


@pytest.fixture
def old_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    folder = shutil.copytree(Path(__file__).parent / "old_sweep", tmp_path / "old")
    launch = (folder / "launch.json").read_text()
    (folder / "launch.json").write_text(launch.replace("{workdir}", str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return folder


def test_loads(old_sweep: Path, tmp_path: Path) -> None:
    sweep, study = open_sweep(old_sweep)
    check_same_space(study, sweep)  # not a letter of the search space's fingerprint has changed
    state = summary(sweep, study, old_sweep)
    assert state["study"] == "before the redesign"
    assert state["objective"] == "minimize 1 error + 0.5 other"
    assert counts(study) == {"running": 1, "complete": 4, "pruned": 0, "fail": 0, "waiting": 1}
    assert sweep.budget.steps == 100
    assert sweep.objective.values({"error": 1.0, "other": 4.0}) == [3.0]
    assert float(load_folder(old_sweep).base["optim"]["max_epochs"]) == 10
    found = best_config(old_sweep, tmp_path / "best.yml")
    assert found["values"] == [min(trial.values[0] for trial in slots(study).values() if trial.values)]


def test_goes_on(old_sweep: Path) -> None:
    before = {slot: trial for slot, trial in slots(open_sweep(old_sweep)[1]).items() if trial.values}
    launcher.resume(old_sweep, executor="debug", trials=7)
    study = open_sweep(old_sweep)[1]
    latest = slots(study)
    assert counts(study) == {"running": 0, "complete": 7, "pruned": 0, "fail": 0, "waiting": 0}
    assert {slot: latest[slot].values for slot in before} == {s: trial.values for s, trial in before.items()}
    # the trial of the killed worker was continued with its values
    killed = study.trials[4]
    assert killed.state.name == "FAIL"
    assert latest[4].user_attrs["retry_of"] == 4
    assert latest[4].params == killed.params
