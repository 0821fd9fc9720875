"""Reports: finding runs, curves over steps and time, statistics, the paper's values, the page itself."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_analysis import rattled, train, write_lmdb
from recipes.recipe_file import read_recipe
from scipy import stats
from torch.utils.tensorboard import SummaryWriter
from typer.testing import CliRunner

from fairchem_piwsl.analysis import figures
from fairchem_piwsl.analysis.run_configs import in_old_layout, settings_of
from fairchem_piwsl.cli import app
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import write_json
from fairchem_piwsl.report.curves import read_curves
from fairchem_piwsl.report.measurements import add_measurements
from fairchem_piwsl.report.printed_results import printed_for, printed_values
from fairchem_piwsl.report.report import make_report
from fairchem_piwsl.report.report_figures import plot_weights, survival
from fairchem_piwsl.report.runs import (
    Curve,
    Run,
    _tell_apart,
    find_runs,
    method_label,
    model_label,
)
from fairchem_piwsl.report.statistics import (
    best_until,
    compare_methods,
    equal_time,
    families,
    mean_and_spread,
)
from fairchem_piwsl.units import KCAL_PER_MOL

PIWSL = {"c_pitc": 1.2, "c_pisc": 0.01, "eps_max": 0.015}


def fake_run(
    folder,
    name,
    seed,
    source,
    piwsl=None,
    errors=(0.5, 0.3, 0.2),
    seconds=10.0,
    epochs=10,
    reached=10,
    **optim,
):
    """A run's files without its training: a checkpoint's config and a TensorBoard curve."""
    checkpoints = folder / name / "checkpoints" / name
    checkpoints.mkdir(parents=True)
    config = {
        "model": {"name": "painn", "direct_forces": True},
        "dataset": {"src": str(source)},
        "optim": {"max_epochs": epochs, **({"piwsl": piwsl} if piwsl else {}), **optim},
        "loss_functions": [{"energy": {"fn": "mae"}}, {"forces": {"fn": "l2mae"}}],
        "outputs": {"energy": {}, "forces": {}},
        "cmd": {"seed": seed, "identifier": name},
    }
    torch.save({"config": config, "state_dict": {}, "normalizers": {}}, checkpoints / "best_checkpoint.pt")
    start = 1_700_000_000.0
    with SummaryWriter(str(folder / name / "logs" / "tensorboard" / name)) as writer:
        for number, error in enumerate(errors):
            at = start + seconds * number
            writer.add_scalar("val/forces_mae", error, 10 * number, walltime=at)
            writer.add_scalar("val/energy_mae", 2 * error, 10 * number, walltime=at)
        writer.add_scalar("train/epoch", reached, 10 * number, walltime=at)
    return checkpoints / "best_checkpoint.pt"


def moved_run(folder, target, *args):
    """A fake run whose folder was moved to `target`; all are called "run"."""
    path = fake_run(folder / "made", "run", *args)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.parents[2].replace(target)
    return target / "checkpoints" / "run" / path.name


def evaluation(path, errors, data="data/test.lmdb", structures=6):
    """What `piwsl evaluate` writes; errors: checkpoint -> energy RMSE in eV."""
    models = [
        {"checkpoint": str(file), "metrics": {"energy_rmse": {"value": error}}}
        for file, error in errors.items()
    ]
    content = {"command": "evaluate", "units": {"energy_rmse": "eV"}, "models": models}
    write_json(path, {**content, "data": data, "structures": structures})


def entries_of(folder, out, section=0):
    """Entries of a report in eV by quantity and the first word of the method."""
    result = make_report([folder], units="eV", out=out)
    entries = result["sections"][section]["entries"]
    return {(entry["quantity"], entry["method"].split()[0]): entry for entry in entries}


@pytest.fixture
def source(tmp_path):
    return write_lmdb(tmp_path / "data" / "rmd17_aspirin_100" / "train.lmdb", rattled(["H2O"], 100))


@pytest.fixture
def folder(tmp_path, source):
    """Three seeds of a baseline and of PIWSL, the latter slower and better."""
    for seed in range(3):
        shift = 0.02 * seed
        fake_run(tmp_path / "runs", f"base{seed}", seed, source, errors=(0.5, 0.3 + shift, 0.2 + shift))
        errors = (0.5, 0.2 + shift, 0.1 + shift * 0.9)
        fake_run(tmp_path / "runs", f"piwsl{seed}", seed, source, PIWSL, errors, seconds=20.0)
    return tmp_path / "runs"


def test_runs_are_found_and_named_by_their_settings(folder):
    runs = find_runs([folder])
    assert len(runs) == 6
    assert {run.method for run in runs} == {"baseline", "PITC 1.2, PISC 0.01, eps 0.015"}
    assert {run.dataset for run in runs} == {"rmd17_aspirin_100"}
    assert {run.n_train for run in runs} == {100}
    assert sorted(run.seed for run in runs) == [0, 0, 1, 1, 2, 2]
    (methods,) = families(runs).values()
    assert next(iter(methods)) == "baseline"


def test_training_set_is_found_from_folders_above_the_run(tmp_path, source, monkeypatch):
    fake_run(tmp_path / "runs", "base", 0, source.relative_to(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (run,) = find_runs([tmp_path / "runs"])
    assert run.n_train == 100


def test_runs_of_one_method_with_other_settings_are_kept_apart(folder, source):
    fake_run(folder, "longer", 7, source, epochs=22)
    methods = {run.method for run in find_runs([folder]) if "PITC" not in run.method}
    assert methods == {"baseline (max_epochs 10)", "baseline (max_epochs 22)"}


def test_how_a_run_loads_and_saves_is_no_other_method(tmp_path, source):
    for seed in range(3):
        how = {"num_workers": 4 * (seed > 0), "eval_batch_size": 1 + seed, "checkpoint_every": 100 + seed}
        fake_run(tmp_path / "runs", f"base{seed}", seed, source, **how)
    assert {run.method for run in find_runs([tmp_path / "runs"])} == {"baseline"}

    def of_fairchem2(workers):
        loader = {"dataset": {"dataset_configs": {}}, "num_workers": workers}
        unit = {"model": {"_target_": "m"}, "tasks": []}
        return in_old_layout({"job": {}, "runner": {"train_dataloader": loader, "train_eval_unit": unit}})

    assert settings_of(of_fairchem2(0)) == settings_of(of_fairchem2(4))


def test_data_sets_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for number, path in enumerate(("a/aspirin/train_100", "a/benzene/train_100", "a/seed1/toluene/train")):
        data = write_lmdb(tmp_path / "data" / path / "data.lmdb", rattled(["H2O"], 3 + number))
        fake_run(tmp_path / "runs", f"base{number}", 0, data)
        other = Path(str(data).replace("seed1", "seed2"))  # another draw of the same data set
        if other != data:
            other.parent.mkdir(parents=True)
            shutil.copy(data, other)
            fake_run(tmp_path / "runs", "again", 1, other)
    datasets = sorted(run.dataset for run in find_runs([tmp_path / "runs"]))
    assert datasets == ["aspirin/train_100/data.lmdb", "benzene/train_100/data.lmdb", "toluene", "toluene"]


def test_settings_beyond_those_that_a_label_has_room_for_keep_runs_apart(folder):
    first, second, third = runs = [run for run in find_runs([folder]) if run.method == "baseline"]
    for run, number in ((first, 1), (second, 2), (third, 1)):
        run.config["optim"] = {"a": number, "b": number, "c": number, "d": number, "weight_decay": 0.0}
    third.config["optim"]["weight_decay"] = 0.1
    _tell_apart(runs)
    assert [run.method for run in runs] == [
        "baseline (a 1, b 1, c 1, weight_decay 0.0)",
        "baseline (a 2, b 2, c 2, weight_decay 0.0)",
        "baseline (a 1, b 1, c 1, weight_decay 0.1)",
    ]


def test_curves_of_a_continued_run_leave_the_pause_out(tmp_path):
    for number, start in enumerate((1_700_000_000.0, 1_700_090_000.0)):
        with SummaryWriter(str(tmp_path), filename_suffix=f".{number}") as writer:
            for k in range(4):
                step = 10 * (3 * number + k)
                writer.add_scalar("val/forces_mae", step, step, walltime=start + 5.0 * k)
        time.sleep(1.1)  # TensorBoard orders its files by the second they were made in
    curve = read_curves(tmp_path)["val/forces_mae"]
    assert curve.step.tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert curve.seconds.tolist() == [0, 5, 10, 15, 20, 25, 30]
    assert curve.value == pytest.approx(curve.step)


def test_statistics_equal_those_by_hand(folder):
    runs = find_runs([folder])
    for run in runs:
        run.values["forces_rmse"] = run.curves["val/forces_mae"].value[-1]
    (methods,) = families(runs).values()
    baseline, piwsl = compare_methods(methods, ["forces_rmse"])
    before, after = np.array([0.2, 0.22, 0.24]), np.array([0.1, 0.118, 0.136])
    assert baseline.mean == pytest.approx(before.mean())
    assert baseline.change is None
    assert piwsl.std == pytest.approx(after.std(ddof=1))
    assert piwsl.change == pytest.approx(after.mean() / before.mean() - 1)
    assert piwsl.p == pytest.approx(stats.ttest_rel(after, before).pvalue, rel=1e-4)
    assert piwsl.pairs == 3


@pytest.mark.parametrize(("seeds", "pairs"), [((0, 0, 0), 1), ((None, None, None), 0), ((0, 1, 1), 2)])
def test_a_seed_is_one_sample_however_often_it_was_run(seeds, pairs):
    def runs(method, *values):
        return [
            Run(Path(), {}, "d", 1, "m", method, seed, {"energy_rmse": value})
            for seed, value in zip(seeds, values, strict=True)
        ]

    methods = {"baseline": runs("baseline", 1.0, 2.0, 4.0), "auto": runs("auto", 0.5, 0.51, 0.53)}
    entry = compare_methods(methods, ["energy_rmse"])[-1]
    assert entry.change == pytest.approx(1.54 / 7 - 1)
    assert entry.pairs == pairs
    expected = stats.ttest_rel([0.5, 0.52], [1.0, 3.0]).pvalue if pairs == 2 else None
    assert entry.p == pytest.approx(expected)


def test_methods_are_compared_with_the_baseline_of_their_settings(folder, source, tmp_path):
    for run in find_runs([folder]):
        shutil.rmtree(run.checkpoint.parents[2])
    for batch, baseline, ours in ((16, 16.0, 4.0), (4, 4.0, 3.6)):
        for seed in range(2):
            for piwsl, error in ((None, baseline), (PIWSL, ours)):
                name = f"{'piwsl' if piwsl else 'base'}_{batch}_{seed}"
                path = fake_run(folder, name, seed, source, piwsl, batch_size=batch)
                evaluation(folder / f"{name}.json", {path: error * (1 + 0.01 * seed)})
    result = make_report([folder], units="eV", out=tmp_path / "out")
    entries = [e for e in result["sections"][0]["entries"] if e["quantity"] == "energy_rmse"]
    assert [(e["baseline"], e["change"] and round(e["change"], 3)) for e in entries] == [
        (None, None),
        (None, None),
        ("baseline (batch_size 16)", -0.75),
        ("baseline (batch_size 4)", -0.1),
    ]
    assert "-10.0% against baseline (batch_size 4)" in (tmp_path / "out" / "report.md").read_text()


def test_runs_that_are_not_finished_are_named_and_left_out(folder, source, tmp_path):
    fake_run(folder, "new", 3, source, PIWSL, errors=(46.1,), reached=0.1)
    assert equal_time([run for run in find_runs([folder]) if run.finished]) == 20.0
    entries = entries_of(folder, tmp_path / "out")
    assert len(entries["val_forces_mae_best", "PITC"]["values"]) == 3
    page, markdown = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    for text in (page, markdown):
        assert f"Not finished, so left out: {folder / 'new' / 'checkpoints' / 'new'}." in text
    only = entries_of(folder / "new", tmp_path / "only")  # better than nothing
    assert only["val_forces_mae_best", "PITC"]["mean"] == pytest.approx(46.1)
    assert "Not finished: " in (tmp_path / "only" / "report.md").read_text()


def test_runs_without_a_finite_validation_error_are_named(folder, source, tmp_path):
    fake_run(folder, "diverged", 3, source, PIWSL, errors=(np.nan, np.inf))
    entries = entries_of(folder, tmp_path / "out")
    for quantity in ("best", "equal_time"):
        assert len(entries[f"val_forces_mae_{quantity}", "PITC"]["values"]) == 3
    sentence = f"No finite validation error: {folder / 'diverged' / 'checkpoints' / 'diverged'}."
    assert sentence in (tmp_path / "out" / "report.md").read_text()


def test_equal_time_compares_what_all_have_reached(folder):
    runs = find_runs([folder])
    assert equal_time(runs) == 20.0  # baselines end there, PIWSL is at its second point
    result = make_report([folder], units="EV", out=folder.parent / "report")
    assert result["units"] == "eV"
    (section,) = result["sections"]
    means = {(e["quantity"], e["method"]): e["mean"] for e in section["entries"]}
    quantity = "val_forces_mae_equal_time"
    assert means[quantity, "baseline"] == pytest.approx(0.22)
    assert means[quantity, "PITC 1.2, PISC 0.01, eps 0.015"] == pytest.approx(0.22)
    assert means["wall_time", "baseline"] == pytest.approx(1 / 3)
    curve = Curve(np.array([1, 2, 3]), np.array([0.0, 10.0, 20.0]), np.array([3.0, 1.0, 2.0]))
    assert best_until(curve, 25) == 1.0
    assert best_until(curve, 5) == 3.0
    assert np.isnan(best_until(curve, -1))


def test_papers_values_match_data_set_size_model_and_method(folder):
    baseline, piwsl = sorted(
        (run for run in find_runs([folder]) if run.seed == 0), key=lambda run: run.method, reverse=True
    )
    rows = [v for v in printed_values() if (v.dataset, v.n_train, v.model) == ("rmd17_aspirin", 100, "painn")]
    for run, variant in ((baseline, "baseline"), (piwsl, "piwsl")):
        expected = next(v for v in rows if v.variant == variant and v.quantity == "forces_rmse")
        assert printed_for(run, "forces_rmse") == expected
    assert printed_for(baseline, "time_to_failure") is None
    assert printed_for(baseline, "forces_rmse", "tio2").dataset == "tio2"
    baseline.n_train = 123
    assert printed_for(baseline, "forces_rmse") is None


@pytest.mark.parametrize(
    ("name", "dataset", "table", "variant"),
    [
        ("painn_gradient_energies_only_piwsl", None, "3", "piwsl"),
        ("painn_energies_only_baseline", None, "3", "baseline"),
        ("painn_pisc", None, "4", "pisc"),
        ("painn_adversarial", None, "6", "adversarial"),
        ("painn_pisc_case2", "ani1x_other_sample", "A10", "pisc_case2"),
        ("painn_pitc_mae", "ani1x_other_sample", "A12", "pitc_mae"),
        ("painn_pitc_eps0.05", "ani1x_other_sample", "A13", "pitc_eps0.05"),
        ("painn_pitc_fraction50", "ani1x_other_sample", "A14", "pitc_fraction50"),
        ("painn_gradient_weak_label", None, "A16", "weak_label"),
        ("painn_piwsl", None, "1", "piwsl"),
    ],
)
def test_papers_values_of_its_special_tables(name, dataset, table, variant):
    root = Path(__file__).parents[2]
    recipe = read_recipe(root / "scripts" / "paper" / f"table_{table}.yml")
    content = recipe.plan(root / "configs" / "s2ef")[f"ani1x_1000/{name}"].config()
    content["dataset"] = content["dataset"]["train"]
    run = Run(
        checkpoint=Path(),
        config=content,
        dataset="",
        n_train=1000,
        model=model_label(content["model"]),
        method=method_label(content),
        seed=0,
    )
    found = printed_for(run, "forces_rmse", dataset)
    assert (found.table, found.variant) == (table, variant)


def test_measurements_are_found_and_converted(folder, tmp_path, capsys):
    run = next(run for run in find_runs([folder]) if run.seed == 1 and run.method == "baseline")
    checkpoint = str(run.checkpoint)
    estimate = {"value": 2.0, "low": 1.0, "high": 3.0}
    write_json(
        folder / "evaluate.json",
        {
            "command": "evaluate",
            "data": "test.lmdb",
            "structures": 6,
            "units": {"forces_rmse": "eV/Angstrom", "energy_per_atom_rmse": "meV/atom", "forces_cosine": ""},
            "models": [
                {
                    "checkpoint": checkpoint,
                    "metrics": dict.fromkeys(
                        ("forces_rmse", "energy_per_atom_rmse", "forces_cosine"), estimate
                    ),
                }
            ],
        },
    )
    for formula, ensemble, failure, drifts in (
        ("H2O", "nve", 12.5, [4.0, -6.0]),
        ("H2O", "nvt", 20.0, [None, None]),
        ("C6H6", "nve", 1.0, [1.0, 1.0]),
    ):
        write_json(
            folder / formula / ensemble / "md.json",
            {
                "command": "md",
                "checkpoint": checkpoint,
                "formula": formula,
                "settings": {"ensemble": ensemble, "temperature": 300.0, "timestep": 0.5, "friction": 0.01},
                "criterion": {"threshold": 0.5, "unit": "Angstrom"},
                "length": 25.0,
                "runs": [{"drift": drift, "time": 25.0, "failed": False} for drift in drifts],
                "summary": {"time_to_failure_mean": failure, "failed": 2, "runs": 5},
                "distances": {"mae": 0.1 if ensemble == "nvt" else None},
            },
        )
    write_json(folder / "other.json", [1, 2, 3])
    write_json(folder / "foreign.json", {"command": "vasp_std", "models": ["a", "b"]})
    (folder / "log.json").write_text('{"step": 1}\n{"step": 2}\n')
    add_measurements([run], [folder], "kcal/mol")
    assert run.values["forces_rmse"] == pytest.approx(2 / KCAL_PER_MOL)
    assert run.values["energy_per_atom_rmse"] == pytest.approx(0.002 / KCAL_PER_MOL)
    assert run.values["forces_cosine"] == 2.0
    assert f"{folder / 'log.json'}: not readable as JSON, so left out." in capsys.readouterr().err
    nve = "NVE, 300 K, 25 ps, 0.5 fs, failure at 0.5 Angstrom"
    nvt = "NVT, 300 K, 25 ps, 0.5 fs, 0.01/fs, failure at 0.5 Angstrom"
    assert run.values[f"time_to_failure@H2O, {nve}"] == 12.5
    assert run.values[f"time_to_failure@C6H6, {nve}"] == 1.0
    assert run.values[f"time_to_failure@H2O, {nvt}"] == 20.0
    assert run.values[f"failed_runs@H2O, {nve}"] == 0.4
    assert run.values[f"energy_drift@H2O, {nve}"] == 5.0
    assert not run.values.keys() & {f"distances_mae@H2O, {nve}", f"energy_drift@H2O, {nvt}"}
    # Conditions get rows of their own, with the quantity's title and judgement.
    make_report([folder], out=tmp_path / "out")
    (picture,) = (tmp_path / "out").glob("survival_*.png")
    assert picture.stat().st_size > 10_000
    markdown = (tmp_path / "out" / "report.md").read_text()
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}  # |difference| makes no cells
    for condition in (f"H2O, {nve}", f"C6H6, {nve}", f"H2O, {nvt}"):
        assert f"time to failure, {condition} (ps)" in markdown
    assert "Times to failure are lower bounds" in markdown


def test_survival_counts_unfinished_starts_as_far_as_they_went():
    time, share = survival([(1.0, True), (2.0, False), (3.0, True), (4.0, False), (4.0, False)])
    assert time.tolist() == [0, 1, 2, 3, 4]
    assert share == pytest.approx([1, 0.8, 0.8, 0.8 * 2 / 3, 0.8 * 2 / 3])


def test_results_of_moved_folders_go_to_the_run_with_the_longest_common_path(tmp_path, source):
    stamp = "2026-11-20-09-44-32"
    for method, piwsl in (("weak", PIWSL), ("base", None)):
        path = fake_run(tmp_path / "made", stamp, 0, source, piwsl)
        target = tmp_path / "runs" / method / "seed0"
        target.parent.mkdir(parents=True)
        path.parents[2].replace(target)
    checkpoint = f"elsewhere/runs/base/seed0/checkpoints/{stamp}/best_checkpoint.pt"
    result = {"checkpoint": checkpoint, "energy_rmse": 3.0, "forces_rmse": 4.0}
    write_json(tmp_path / "runs" / "base" / "result.json", result)
    runs = {run.method: run for run in find_runs([tmp_path / "runs"])}
    add_measurements(list(runs.values()), [tmp_path / "runs"], "kcal/mol")
    assert runs["baseline"].values["energy_rmse"] == pytest.approx(3.0)
    assert len(runs) == 2
    assert not [
        key for method in runs if method != "baseline" for key in runs[method].values if key == "energy_rmse"
    ]


def test_errors_on_several_test_sets_are_rows_of_their_own(folder, tmp_path):
    paths = {run.checkpoint: 2.0 if "piwsl" in str(run.checkpoint) else 5.0 for run in find_runs([folder])}
    evaluation(folder / "evaluate.json", paths)
    there = entries_of(folder, tmp_path / "out")
    assert there["energy_rmse", "PITC"]["change"] == pytest.approx(-0.6)
    hot = {path: 9.0 for path, error in paths.items() if error == 2.0}
    evaluation(folder / "hot.json", hot, "hot/data.lmdb@:100", 100)
    evaluation(folder / "later.json", {path.with_name("checkpoint.pt"): 7.0 for path in hot})
    there = entries_of(folder, tmp_path / "out")
    test = "energy_rmse@test, 6 structures"
    assert there[test, "PITC"]["change"] == pytest.approx(-0.6)
    for condition, error in (("hot@:100, 100 structures", 9.0), ("test, 6 structures, checkpoint.pt", 7.0)):
        entry = there[f"energy_rmse@{condition}", "PITC"]
        assert (entry["mean"], entry["change"]) == (error, None)
    assert "energy RMSE, hot@:100, 100 structures (eV)" in (tmp_path / "out" / "report.md").read_text()
    assert {q for q, _ in there if q.startswith("energy_rmse")} == {
        test, "energy_rmse@hot@:100, 100 structures", "energy_rmse@test, 6 structures, checkpoint.pt"
    }  # fmt: skip


def test_errors_of_a_run_that_is_not_reported_are_no_other_runs(tmp_path, source):
    first, second = (moved_run(tmp_path, tmp_path / name / "seed0", 0, source) for name in ("a", "b"))
    torch.save({**torch.load(second), "val_metrics": 1}, second)  # not the same file
    evaluation(tmp_path / "a" / "evaluate.json", {first: 2.0, second: 9.0})

    def error(folder):
        (run,) = find_runs([folder])
        add_measurements([run], [folder], "eV")
        return run.values.get("energy_rmse")

    assert error(tmp_path / "a") == 2.0
    second.unlink()
    assert error(tmp_path / "a") == 2.0
    shutil.copytree(tmp_path / "a", tmp_path / "copied" / "a")  # the original is still there
    assert error(tmp_path / "copied") == 2.0


def test_weights_that_set_themselves_have_a_picture(folder, source, tmp_path, monkeypatch):
    make_report([folder], out=tmp_path / "without")
    assert not list((tmp_path / "without").glob("weights_*.png"))
    fake_run(folder, "auto0", 0, source, {"auto": True})
    with SummaryWriter(str(folder / "auto0" / "logs" / "tensorboard" / "auto0")) as writer:
        for step in range(3):
            for term in ("energy", "forces", "pitc"):
                writer.add_scalar(f"train/weight_{term}", 1.0 + step, step)
                writer.add_scalar(f"train/gradient_{term}", 2.0, step)
    result = make_report([folder], out=tmp_path / "with")
    assert len(list((tmp_path / "with").glob("weights_*.png"))) == 1
    assert "auto" in {entry["method"] for entry in result["sections"][0]["entries"]}
    panels = []
    monkeypatch.setattr(figures, "save", lambda figure, path: panels.extend(figure.axes))
    short = SimpleNamespace(curves={"train/weight_energy": Curve(*np.ones((3, 1)))})
    plot_weights({"auto": [short]}, "before the first measurement", tmp_path / "short.png")
    assert [[text.get_text() for text in axes.texts] for axes in panels] == [
        [],
        ["not measured in these runs"],
    ]


def test_page_is_self_contained_and_markdown_has_every_row(folder, tmp_path):
    make_report([folder], out=tmp_path / "out", title="A <title>")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"""(src|href)=['"]?(http|/|\.)""", page)
    assert "A &lt;title&gt;" in page
    markdown = (tmp_path / "out" / "report.md").read_text()
    rows = [line for line in markdown.splitlines() if line.startswith("| ") and "quantity" not in line]
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(rows) == len(stored["sections"][0]["entries"])
    assert all(line.count("|") == 8 for line in rows)


def test_mean_and_spread_have_fitting_digits():
    def seeds(mean, std):  # two values with this mean and standard deviation
        return [mean - std / 2**0.5, mean + std / 2**0.5]

    assert mean_and_spread(seeds(12.3456, 0.421)) == "12.35 ± 0.42"
    assert mean_and_spread(seeds(1234.5, 56.0)) == "1234 ± 56"
    assert mean_and_spread([0.00123]) == "0.00123"
    assert mean_and_spread([2.0, 2.0]) == "2"
    assert mean_and_spread([2.0, 2.0], decimals=2) == "2.00 ± 0.00"
    assert mean_and_spread([2.0], decimals=0) == "2"


def test_command_evaluates_each_run_once(tmp_path):
    data = write_lmdb(tmp_path / "tiny" / "train.lmdb", rattled(["H2O"], 8))
    test = write_lmdb(tmp_path / "test.lmdb", rattled(["H2O"], 6, seed=1))
    for seed in range(2):
        train("schnet", data, tmp_path / "runs" / f"run{seed}", seed=seed, identifier=f"base-{seed}")
    arguments = [
        "report",
        str(tmp_path / "runs"),
        "--data",
        str(test),
        "--cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert first.stderr.count("evaluating") == 2
    again = CliRunner().invoke(app, [*arguments, "--json"])
    assert "evaluating" not in again.stderr
    for part in ("@:3", "@3:"):  # parts of a data set are data sets of their own
        other = CliRunner().invoke(app, [*arguments[:3], f"{test}{part}", *arguments[4:]])
        assert other.stderr.count("evaluating") == 2, other.output
    assert len({file.name for file in (tmp_path / "out" / "evaluations").iterdir()}) == 6
    entries = {entry["quantity"]: entry for entry in json.loads(again.stdout)["sections"][0]["entries"]}
    assert len(entries["forces_rmse"]["values"]) == 2
    assert len(set(entries["forces_rmse"]["values"])) == 2
    assert entries["steps"]["mean"] == 4


def test_report_has_the_errors_of_its_own_data_and_options(source, tmp_path, monkeypatch):
    path = fake_run(tmp_path / "runs", "base", 0, source)

    def evaluate(checkpoints, data, **options):
        value = {"a": 1.0, "b": 2.0}[Path(data).stem] + (10 if options.get("gradient_forces") else 0)
        model = {"checkpoint": str(path), "metrics": {"energy_rmse": {"value": value}}}
        about = {"data": str(data), "structures": 6, "units": {"energy_rmse": "eV"}}
        return {"command": "evaluate", **about, "models": [model]}

    def error(data, **options):
        folders = [tmp_path / "runs"]
        result = make_report(folders, data=tmp_path / data, units="eV", out=tmp_path / "runs/out", **options)
        entries = result["sections"][0]["entries"]
        return next(entry["mean"] for entry in entries if entry["quantity"] == "energy_rmse")

    monkeypatch.setattr("fairchem_piwsl.report.report.evaluate", evaluate)
    assert [error("a.xyz"), error("b.xyz"), error("a.xyz")] == [1.0, 2.0, 1.0]
    assert [error("a.xyz", gradient_forces=True), error("a.xyz")] == [11.0, 1.0]


def test_bad_input_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_runs([tmp_path / "absent"])
    with pytest.raises(UserError, match="no checkpoint below"):
        find_runs([tmp_path])
    with pytest.raises(UserError, match="--paper-dataset moon"):
        make_report([tmp_path], paper_dataset="moon", out=tmp_path / "out")
    (tmp_path / "best_checkpoint.pt").write_bytes(b"half")
    with pytest.raises(UserError, match="truncated or no torch checkpoint"):
        find_runs([tmp_path])
    assert not (tmp_path / "out").exists()
