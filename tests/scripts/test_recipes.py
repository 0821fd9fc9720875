"""Recipes: the paper's tables as lists of configs, their small scale, and one carried out from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import paper
import pytest
import yaml
from recipes import cost
from recipes.carry_out import options, use_data, write_trainings
from recipes.recipe_file import read_recipe
from recipes.scale import innermost_model, schedule, shrink

from fairchem_piwsl.config import data_folder, load_config
from fairchem_piwsl.datasets.element_references import N_ELEMENTS, write_references
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.report.printed_results import printed_values
from fairchem_piwsl.settings import PIWSLSettings

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "s2ef"
RECIPES = {path.stem: path for path in sorted((ROOT / "scripts" / "paper").glob("*.yml"))}
SMALL = yaml.safe_load((ROOT / "scripts" / "paper" / "small" / "scale.yml").read_text())


def small_data(tiny_data: Path, folder: Path) -> Path:
    """A folder as `piwsl prepare` leaves it, of links to the tiny data."""
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        (folder / split / "data.lmdb").symlink_to(tiny_data / f"{split}.lmdb")
    return folder


def test_every_table_of_results_has_a_recipe():
    assert {f"table_{item.table}" for item in printed_values()} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_find_their_configs_and_shrink_them(name, tiny_data, tmp_path):
    recipe = read_recipe(RECIPES[name])
    full = recipe.plan(CONFIGS)
    if recipe.smoke.instead:
        return
    data = small_data(tiny_data, tmp_path / "data")
    small = recipe.plan(CONFIGS, small=True)
    assert small.keys() <= full.keys()
    for config in use_data({key: run.config() for key, run in small.items()}, {}, lambda: data).values():
        config = shrink(config, SMALL, 60)
        assert 60 <= config["optim"]["T_max"] < 60 + 13
        assert data_folder(config) == data
        assert config["dataset"]["val"]["src"].startswith(str(data))


def test_small_scale_keeps_losses_and_weak_terms(tiny_data, tmp_path):
    data = small_data(tiny_data, tmp_path / "data")
    run = read_recipe(RECIPES["table_3"]).plan(CONFIGS)["ani1x_1000/painn_gradient_energies_only_piwsl"]
    config = use_data({"x": run.config()}, {}, lambda: data)["x"]
    small = shrink(config, SMALL, 100)
    assert small["loss_functions"] == config["loss_functions"]
    late = {"start_step": 0, "ramp_steps": 0}
    assert small["optim"]["piwsl"] == config["optim"]["piwsl"] | late
    config["optim"]["piwsl"] |= {"start_step": 500, "ramp_steps": 10}
    assert shrink(config, SMALL, 600)["optim"]["piwsl"] == config["optim"]["piwsl"] | {"start_step": 100}
    config["optim"]["piwsl"] = {"auto": True}  # starts as late as it would by itself
    auto = PIWSLSettings.from_config(shrink(config, SMALL, 3003)["optim"]["piwsl"])
    assert auto == PIWSLSettings.from_config({"auto": True})
    assert small["optim"]["clip_grad_norm"] == config["optim"]["clip_grad_norm"]
    assert "patience" not in small["optim"]  # of the scheduler that was replaced
    assert small["model"]["name"] == config["model"]["name"]
    assert innermost_model(small["model"])["hidden_channels"] == 64
    assert innermost_model(config["model"])["hidden_channels"] == 512


def test_twice_the_steps_are_twice_the_epochs():
    runs = read_recipe(RECIPES["table_A15"]).plan(CONFIGS)
    epochs = {name: run.config()["optim"]["max_epochs"] for name, run in runs.items()}
    for method in ("baseline", "piwsl"):
        assert epochs[f"ani1x_1000/painn_80000_steps_{method}"] == 2 * epochs[f"ani1x_1000/painn_{method}"]


@pytest.mark.parametrize(("structures", "epochs", "T_max"), [(100, 24, 312), (1000, 3, 375), (9999, 1, 1250)])
def test_the_cosine_of_a_short_schedule_ends_with_its_last_epoch(structures, epochs, T_max):
    found = schedule(300, structures, batch_size=8, validations=5)
    assert found == {"max_epochs": epochs, "T_max": T_max, "eval_every": 60}


def test_options():
    settings = {"group_by": "none", "bond": [0, 5], "steps": 20}
    assert options(settings) == ["--group-by", "none", "--bond", "0", "5", "--steps", "20"]


def test_mistakes_are_sentences(tiny_data, tmp_path):
    config = load_config(CONFIGS / "tio2_100" / "painn.yml")
    with pytest.raises(UserError, match=r"data/tio2_100 is missing.*piwsl prepare"):
        use_data({"x": config}, {}, None)
    with pytest.raises(UserError, match=r"--data lmnto_100=.*uses tio2_100"):
        use_data({"x": config}, {"lmnto_100": "f"}, lambda: small_data(tiny_data, tmp_path / "data"))
    with pytest.raises(UserError, match="matches no run of this recipe"):
        read_recipe(RECIPES["table_4"]).plan(CONFIGS, only="schnet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: t\nruns: []\nstep: 3\n", r"bad\.yml: 'step' is not a key; known settings: title, runs"),
        ("title: t\nruns: []\nname: x\n", "'name' is not a key"),
        ("title: t\nruns: []\nsmoke: {step: 3}\n", "smoke: 'step' is not a key; did you mean 'steps'"),
        ("title: t\nruns: []\nsmoke: {steps: many}\n", r"smoke\.steps must be a whole number, not 'many'"),
        ("title: t\nruns: []\nmeasure: {curl: {}}\n", "measure: 'curl' is no measurement"),
        ("title: t\nruns: [{data: [], models: [x], methods: [a]}]\n", r"runs\.0\.data must be 1 or more"),
        ("title: t\n", r"bad\.yml: runs is missing; add it\."),
        ("title: t\nruns: 3\n", r"bad\.yml: runs must be a list, not 3\."),
        ("title: t\nruns: [painn]\n", r"runs\.0 must be a block"),
        ("title: t\nruns: [{data: [a], models: [painn]}]\n", r"runs\.0\.methods is missing"),
        ("title: t\nruns: [{data: a, models: [painn], methods: [piwsl]}]\n", r"runs\.0\.data must be a list"),
        (
            "title: t\nruns: [{data: [a], models: [painn], methods: piwsl}]\n",
            r"runs\.0\.methods must be names",
        ),
        ("title: t\nruns: [{data: [a], models: [x], methods: [piwsl]}]\n", r"a/x\.yml does not exist"),
        ("title: t\nruns: [{data: [tio2_100], models: [painn], methods: [pwsl]}]\n", "did you mean piwsl"),
    ],
)
def test_mistakes_in_a_recipe_are_sentences(text, message, tmp_path):
    (tmp_path / "bad.yml").write_text(text)
    with pytest.raises(UserError, match=message):
        [run.config() for run in read_recipe(tmp_path / "bad.yml").plan(CONFIGS).values()]


def test_a_missing_test_set_is_named_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    recipe = read_recipe(RECIPES["extrapolation"])
    for path in recipe.tests.values():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.setattr(paper, "ROOT", tmp_path)
    assert list(paper.further_tests(recipe)) == ["300 K", "600 K", "900 K", "1200 K"]
    (tmp_path / recipe.tests["900 K"]).unlink()
    out = tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["paper.py", "extrapolation", "--out", str(out)])
    with pytest.raises(SystemExit):
        paper.main()
    assert "does not exist, the test set '900 K' of extrapolation" in capsys.readouterr().err
    assert not out.exists()


def test_other_settings_do_not_mix_into_a_folder(tmp_path):
    config = load_config(CONFIGS / "tio2_100" / "painn.yml")
    first = write_trainings({"x/y": config}, [0, 1], tmp_path)
    assert [training.run_dir.name for training in first] == ["seed0", "seed1"]
    assert write_trainings({"x/y": config}, [0], tmp_path)[0] == first[0]
    config["optim"]["batch_size"] = 5
    with pytest.raises(UserError, match=r"y\.yml holds other settings"):
        write_trainings({"x/y": config}, [0], tmp_path)


def test_a_recipe_from_end_to_end(tiny_data, tmp_path, monkeypatch, capsys):
    """Two short trainings; the second call, in this process like those after it, only writes the report again."""
    data = small_data(tiny_data, tmp_path / "data")
    write_references(data / "element_references.npz", np.zeros(N_ELEMENTS))
    command = [sys.executable, str(ROOT / "scripts" / "paper.py"), "table_A18"]
    command += ["--data", f"ani1x_1000={data}", "--steps", "4"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    out = tmp_path / "runs" / "paper" / "table_A18_smoke"
    report = json.loads((out / "report" / "report.json").read_text())
    (section,) = report["sections"]
    results = json.loads((out / "results.json").read_text())
    assert [run["method"] for run in results["runs"]] == ["baseline", "piwsl"]
    for run in results["runs"]:
        folder = out / run["data"] / f"{run['model']}_{run['method']}" / f"seed{run['seed']}"
        (evaluation,) = json.loads((folder / "evaluate" / "evaluate.json").read_text())["models"]
        assert run["errors"]["forces_rmse"] == evaluation["metrics"]["forces_rmse"]["value"]
        assert run["train_seconds"] == json.loads((folder / "trained.json").read_text())["train_seconds"]
        assert (run["steps"], run["trained_on"], "cost" in run) == (4, "data", False)
    found = {(entry["quantity"], entry["method"]) for entry in section["entries"]}
    methods = {method for _, method in found}
    assert len(methods) == 2
    assert {(quantity, method) for quantity in ("forces_rmse", "force_curl") for method in methods} <= found

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".pt", ".log")}
    monkeypatch.chdir(tmp_path)
    run_here(monkeypatch, command[1:])
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for name, short in (("TRAINED", 61), ("COUNTED", 20), ("MD_STEPS", 20)):
        monkeypatch.setattr(cost, name, short)
    run_here(monkeypatch, [*command[1:3], "--cost"])
    results = json.loads((out / "results.json").read_text())
    assert all(run["cost"]["seconds"] > 0 and run["cost"]["ns_per_day"] > 0 for run in results["runs"])
    assert all(0 < run["step_seconds"] < 5 for run in results["runs"])
    with pytest.raises(SystemExit) as stopped:
        run_here(monkeypatch, [*command[1:-1], "5"])
    assert stopped.value.code == 2
    assert "other settings" in capsys.readouterr().err
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(SystemExit):
        run_here(monkeypatch, [*command[1:3], "--publish"])
    assert f"its training set {data / 'train' / 'data.lmdb'} is not here" in capsys.readouterr().err


def run_here(monkeypatch, words):
    """The script in this process, which saves importing everything again."""
    monkeypatch.setattr(sys, "argv", words)
    paper.main()
