"""Method comparisons: training in processes of their own, errors, tables, going on after an interruption."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rmd17_aspirin
import yaml
from conftest import make_config
from recipes.compare import Result, compare
from recipes.compare_fairchem2 import train as train_fairchem2
from recipes.compare_report import as_recipe, learning_curve, markdown_table, plot, present, rows
from recipes.results_file import best_baseline, by_seed, grouped, read_results

from fairchem_piwsl.config import load_config, with_overrides
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.training.checkpoints import read_checkpoint
from fairchem_piwsl.units import KCAL_PER_MOL

METHODS = {"baseline": ["--optim.piwsl.c_pitc=0.0"], "piwsl": []}


@pytest.mark.parametrize(("method", "overrides"), rmd17_aspirin.METHODS.items())
def test_methods_of_rmd17_aspirin_are_what_their_names_say(method, overrides):
    config = with_overrides(load_config(rmd17_aspirin.CONFIG), overrides)
    settings = PIWSLSettings.from_config(config["optim"]["piwsl"])
    assert (settings.auto, settings.every_n_steps, settings.energy_share) == (False, 1, 0)
    assert settings.weak == ("PITC" in method or method == "case F")
    energies_only = method.startswith("energies only")
    assert config["evaluation_metrics"]["primary_metric"] == (
        "energy_rmse" if energies_only else "forces_rmse"
    )
    assert len(config["loss_functions"]) == (1 if energies_only else 2)


@pytest.fixture(scope="module")
def comparison(tiny_data, tmp_path_factory) -> tuple[Path, list[Result]]:
    """A comparison of two tiny runs, and its folder."""
    folder = tmp_path_factory.mktemp("comparison")
    config = make_config(tiny_data, folder, "painn", {"c_pitc": 1.0, "eps_max": 0.02}, eval_every=2)
    del config["run_dir"]
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    return folder, compare(folder / "config.yml", METHODS, [0], tiny_data / "test.lmdb", folder / "runs")


def test_methods_differ_in_what_their_arguments_say(comparison):
    _, (baseline, piwsl) = comparison
    assert (baseline.method, piwsl.method) == ("baseline", "piwsl")
    assert baseline.energy_rmse != piwsl.energy_rmse
    for run in (baseline, piwsl):
        assert run.train_seconds > 0
        config = read_checkpoint(run.checkpoint)["config"]
        assert config["optim"]["piwsl"]["c_pitc"] == (1.0 if run.method == "piwsl" else 0.0)


def test_errors_are_those_of_the_checkpoint(comparison, tiny_data):
    from fairchem_piwsl.analysis.potential import load_potential
    from fairchem_piwsl.datasets.read import read_labelled

    run = comparison[1][0]
    structures = read_labelled(tiny_data / "test.lmdb")
    prediction = load_potential(run.checkpoint, cpu=True).predict([s.atoms for s in structures])
    error = np.array([s.energy for s in structures]) - prediction.energy
    assert run.energy_rmse == pytest.approx(np.sqrt(np.mean(error**2)) / KCAL_PER_MOL, rel=1e-4)


def test_finished_runs_are_not_repeated(comparison, tiny_data):
    folder, results = comparison
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}
    assert times
    again = compare(folder / "config.yml", METHODS, [0], tiny_data / "test.lmdb", folder / "runs")
    assert again == results
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}


def test_interrupted_run_continues_to_the_same_end(comparison, tiny_data, tmp_path):
    folder, (whole, _) = comparison
    run_dir = tmp_path / "baseline" / "seed0"
    command = [sys.executable, "-m", "fairchem_piwsl", "fairchem", "--mode", "train", "--cpu", "--seed", "0"]
    command += [
        "--config-yml",
        str(folder / "config.yml"),
        "--run-dir",
        str(run_dir),
        "--timestamp-id",
        "run",
    ]
    half = [*METHODS["baseline"], "--optim.max_epochs=1", "--dataset.test=None"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as `compare` trains: more threads round otherwise
    subprocess.run([*command, *half], check=True, capture_output=True, env=one_thread)
    method = {"baseline": METHODS["baseline"]}
    (continued,) = compare(folder / "config.yml", method, [0], tiny_data / "test.lmdb", tmp_path)
    assert "checkpoints/run/checkpoint.pt" in (run_dir / "train.log").read_text()
    assert continued.energy_rmse == whole.energy_rmse
    assert continued.forces_rmse == whole.forces_rmse


#: stands in for fairchem 2's command line: works a while, leaves a checkpoint and fails unless it finds one
STOPS_ONCE = """#!/bin/sh
i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done
mkdir -p run/checkpoints/step_2 && cat run/checkpoints/step_2/resume.yaml || { touch run/checkpoints/step_2/resume.yaml run/checkpoints/step_2/.metadata; exit 1; }
"""


def test_processor_time_of_a_continued_run_has_its_earlier_part(tmp_path, monkeypatch):
    program, config = tmp_path / "fairchem", tmp_path / "config.yml"
    program.write_text(STOPS_ONCE)
    program.chmod(0o755)
    config.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    def children() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = children()
    with pytest.raises(UserError, match="failed"):
        train_fairchem2(config, [], tmp_path, "label")
    first = children() - before
    seconds = train_fairchem2(config, [], tmp_path, "label")
    assert seconds > 1.2 * first  # the second part is as long as the first
    assert seconds == pytest.approx(children() - before, abs=1e-3)  # sums in another order round otherwise


def test_folder_of_another_run_is_refused(comparison, tiny_data):
    folder, _ = comparison
    changed = {"baseline": [*METHODS["baseline"], "--optim.lr_initial=0.1"]}
    with pytest.raises(UserError, match=r"seed0 holds a run with other settings.*settings\.json"):
        compare(folder / "config.yml", changed, [0], tiny_data / "test.lmdb", folder / "runs")


def test_failed_training_names_its_log(comparison, tiny_data, tmp_path):
    config = comparison[0] / "config.yml"
    with pytest.raises(UserError, match=r"train\.log.*c_pitcc"):
        compare(config, {"typo": ["--optim.piwsl.c_pitcc=1"]}, [0], tiny_data / "test.lmdb", tmp_path)


def test_tables_and_picture(comparison, tiny_data, tmp_path):
    results = comparison[1]
    present(results, tmp_path, as_recipe(results, "made_up", "title", "aspirin", "painn"))
    ((methods),) = grouped(read_results(tmp_path / "results.json")).values()
    assert by_seed(methods["piwsl"], "energy_rmse") == {0: results[1].energy_rmse}
    assert best_baseline(methods) == "baseline"
    steps, values = learning_curve(results[0], "energy_rmse")
    assert steps == [2, 4, 6]
    assert all(value > 0 for value in values)
    path = plot(results, tiny_data / "test.lmdb", tmp_path / "picture.png", "title")
    assert path.stat().st_size > 10_000


def test_rows_are_means_spreads_and_changes():
    def run(method: str, seed: int, energy: float) -> Result:
        return Result(method, seed, energy, 2.0, 10.0, "")

    results = [run("baseline", 0, 4.0), run("new", 0, 1.0), run("baseline", 1, 6.0), run("new", 1, 3.0)]
    assert rows(results)[0] == ("baseline", "5.00 ± 1.41", "", "2.00 ± 0.00", "", "10 ± 0")
    assert rows(results)[1] == ("new", "2.00 ± 1.41", "-60.0 %", "2.00 ± 0.00", "+0.0 %", "10 ± 0")
    assert markdown_table(results).splitlines()[2].startswith("| baseline | 5.00 ± 1.41 |")
