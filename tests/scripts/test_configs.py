"""Every file in configs/s2ef: the paper's tables, loading, building, and training steps with each model and method."""

from __future__ import annotations

import copy
import csv
import inspect
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import write
from conftest import labelled_molecules, make_trainer
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config
from helpers_models import DIRECT
from recipes.recipe_file import read_recipe

from fairchem_piwsl.config import with_method
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.units import KCAL_PER_MOL

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "s2ef"
#: folders of configs/s2ef that hold parts of configs; the others are data sets
PARTS = ("cases", "datasets", "methods", "models")
MODELS = ("equiformer_v2", "escn", "painn", "spinconv", "schnet")
METHODS = ("baseline", "noisy_nodes", "weak_label", "piwsl")

# The paper's tables, as printed; what the configs must say in the end.
TABLE_A1 = {"ani1x": 6, "tio2": 4, "rmd17": 16, "lmnto": 4}
TABLE_A2 = """
| N_train | ani1x | tio2 | rmd17 | lmnto |
| 50 | 7,500 (900) | | | |
| 100 | 10,000 (600) | 10,000 (400) | 7,500 (1200) | 10,000 (400) |
| 1,000 | 40,000 (240) | 10,000 (100) | 10,000 (160) | 10,000 (100) |
| 10,000 | 100,000 (60) | | | |
"""
CASES = """
A (1.2, 0.8, 0.025) · B (1.0, 0, 0.01) · C (0.1, 0.01, 0.01) · D (1.2, 0.01, 0.025) · E (1.2, 0.01, 0.01)
F (1.2, 0.01, 0.015) · G (0.01, 0.001, 0.025) · H (0.1, 0.01, 0.025)
"""
TABLE_A3 = """
| data set | N_train | Equiformer v2 | eSCN | PaiNN | SpinConv | SchNet |
| ANI-1x | 50 | A | C | B | A | A |
| ANI-1x | 100 | A | C | A | D | A |
| ANI-1x | 1,000 | D | D | D | B | B |
| ANI-1x | 10,000 | G | C | B | C | C |
| TiO2 | 100 | A | A | A | A | H |
| TiO2 | 1,000 | G | A | C | A | C |
| rMD17 aspirin | 100 | E | B | F | D | A |
| rMD17 aspirin | 1,000 | B | B | B | B | B |
| rMD17 benzene | 100 | B | B | B | B | B |
| rMD17 benzene | 1,000 | G | B | B | B | B |
| rMD17 naphthalene | 100 | G | B | B | B | B |
| rMD17 naphthalene | 1,000 | G | B | B | B | B |
| LMNTO | 100 | B | B | B | A | B |
| LMNTO | 1,000 | B | A | B | B | B |
"""
#: C_e and C_f
COEFFICIENTS = {
    "schnet": (1, 30),
    "painn": (1, 100),
    "spinconv": (1, 100),
    "escn": (4, 100),
    "equiformer_v2": (4, 100),
}

#: what makes a model of configs/s2ef/models small
SMALL: dict[str, dict[str, Any]] = {
    model: {key: value for key, value in block.items() if key != "name"} for model, block in DIRECT.items()
} | {
    "mace": dict(
        hidden_irreps="4x0e + 4x1o", mlp_irreps="4x0e", max_ell=1, correlation=2, radial_mlp=[8], num_bessel=4
    ),
}
SMALL["equiformer_v2"] |= dict(num_distance_basis=16, grid_resolution=8)


def paths() -> list[Path]:
    return sorted(CONFIGS.rglob("*.yml"))


@cache
def _loaded(path: Path) -> tuple[dict[str, Any], list[str], list[str]]:
    return load_config(str(path))


def loaded(path: str | Path, method: str = "") -> dict[str, Any]:
    """A config as fairchem reads it, with a method of the command line laid over it."""
    config = copy.deepcopy(_loaded(CONFIGS / path)[0])
    return with_method(config, method) if method else config


def is_run(path: Path) -> bool:
    """Whether a file is a complete config and not a part of one."""
    return path.name == "example.yml" or path.parent.name not in (*PARTS, "s2ef")


@cache
def recipe_runs(table: str) -> dict[str, dict[str, Any]]:
    """The configs of a recipe of scripts/paper, by name."""
    recipe = read_recipe(ROOT / "scripts" / "paper" / f"{table}.yml")
    return {name: run.config() for name, run in recipe.plan(CONFIGS).items()}


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]


def cells() -> dict[tuple[str, str], str]:
    """Case of each (data set, model) of Table A3."""
    found = {}
    for name, count, *cases in rows(TABLE_A3)[1:]:
        dataset = name.lower().replace("ani-1x", "ani1x").replace(" ", "_") + "_" + count.replace(",", "")
        found.update({(dataset, model): case for model, case in zip(MODELS, cases, strict=True)})
    return found


def paper_epochs(dataset: str) -> tuple[int, int]:
    """Iterations and epochs of Table A2."""
    family, _, count = dataset.split("_")[0], *dataset.rpartition("_")[1:]
    columns, *body = rows(TABLE_A2)
    [entry] = [row[columns.index(family)] for row in body if row[0].replace(",", "") == count]
    iterations, epochs = re.fullmatch(r"([\d,]+) \((\d+)\)", entry).groups()
    return int(iterations.replace(",", "")), int(epochs)


# ------------------------------------------------------------------------------------------ tables


def test_every_cell_has_the_case_of_table_a3():
    cases = {
        name: tuple(float(value) for value in values.split(","))
        for name, values in re.findall(r"([A-H]) \(([^)]+)\)", CASES)
    }
    assert len(cells()) == 70
    for (dataset, model), case in cells().items():
        config = loaded(f"{dataset}/{model}.yml")
        settings = PIWSLSettings.from_config(config["optim"]["piwsl"])
        assert (settings.c_pitc, settings.c_pisc, settings.eps_max) == cases[case], (dataset, model)
        assert settings.k_2nd == 0
        assert not settings.noisy_nodes


def test_every_cell_has_its_data_model_and_loss():
    for dataset, model in cells():
        for method in METHODS:
            config = loaded(f"{dataset}/{model}.yml", method)
            where = (dataset, model, method)
            for split in ("train", "val", "test"):
                assert config["dataset"][split]["src"] == f"data/{dataset}/{split}/data.lmdb", where
            kilocalorie = config["dataset"]["train"]["transforms"]["normalizer"]
            assert kilocalorie == {key: {"mean": 0.0, "stdev": KCAL_PER_MOL} for key in ("energy", "forces")}
            assert config["model"]["name"].lower().endswith(model), where
            energy, forces = config["loss_functions"]
            assert energy["energy"] == {"fn": "mae", "coefficient": COEFFICIENTS[model][0]}, where
            assert forces["forces"] == {"fn": "l2mae", "coefficient": COEFFICIENTS[model][1]}, where


def test_every_cell_has_batch_and_epochs_of_tables_a1_and_a2():
    for dataset, model in cells():
        optim = loaded(f"{dataset}/{model}.yml")["optim"]
        iterations, epochs = paper_epochs(dataset)
        batch = TABLE_A1[dataset.split("_")[0]]
        if (dataset.split("_")[0], model) == ("tio2", "schnet"):
            batch, epochs = 32, None
        steps = optim["max_epochs"] * math.ceil(int(dataset.rpartition("_")[2]) / batch)
        assert optim["batch_size"] == batch, (dataset, model)
        assert epochs is None or optim["max_epochs"] == epochs, (dataset, model)
        assert steps >= iterations, (dataset, model)
        assert 20 <= steps / optim["eval_every"] <= 51, (dataset, model)
        assert steps % optim["eval_every"] < 0.02 * steps, "the end of the run is never validated"


def test_methods_differ_in_their_settings_alone():
    for dataset, model in cells():
        runs = {method: loaded(f"{dataset}/{model}.yml", method) for method in METHODS}
        blocks = {name: PIWSLSettings.from_config(run["optim"].pop("piwsl")) for name, run in runs.items()}
        assert all(run == runs["baseline"] for run in runs.values()), (dataset, model)
        assert not blocks["baseline"].weak
        assert not blocks["baseline"].noisy_nodes
        assert blocks["noisy_nodes"].noisy_nodes
        assert (blocks["weak_label"].c_wl, blocks["weak_label"].c_pitc) == (1.0, 0.0)
        assert blocks["piwsl"].c_pitc > 0


def test_every_result_of_the_paper_has_a_run():
    reference = ROOT / "fairchem_piwsl" / "report" / "reference_results.csv"
    results = {
        (row["table"], row["dataset"], row["n_train"], row["model"], row["variant"])
        for row in csv.DictReader(reference.open())
        if row["variant"] != "reference_tuned"  # a potential of somebody else
    }
    assert len(results) > 200
    missing = []
    for table, dataset, count, model, variant in sorted(results):
        if table == "A18":
            variant = variant.replace("pitc", "piwsl")
        if dataset.endswith("_no_forces"):
            model, variant = model.removesuffix("_direct"), f"energies_only_{variant}"
        if dataset.endswith("_80000_iterations"):
            variant = f"80000_steps_{variant}"
        dataset = re.sub(r"_(no_forces|other_sample|[48]0000_iterations|batch4)$", "", dataset)
        if f"{dataset}_{count}/{model}_{variant}" not in recipe_runs(f"table_{table}"):
            missing.append((table, dataset, count, model, variant))
    assert not missing


@pytest.mark.parametrize(
    ("table", "pattern", "expected"),
    [
        ("table_3", "_piwsl", dict(c_pitc=0.1, c_pisc=0.0)),
        ("table_4", "_pitc", dict(c_pitc=1.2, c_pisc=0.0, eps_max=0.025)),
        ("table_4", "_pisc", dict(c_pitc=0.0, c_pisc=0.01, eps_max=0.025)),
        ("table_5", "(painn|v2)_pitc", dict(c_pitc=1.0, c_pisc=0.0)),
        ("table_6", "_adversarial", dict(c_pitc=1.2, c_pisc=0.01, eps_max=0.025, perturbation="adversarial")),
        ("table_A10", "_pisc_case2", dict(c_pitc=0.1, c_pisc=0.001, eps_max=0.01, pisc_case=2)),
        ("table_A12", "_relu", dict(c_pitc=0.1, c_pisc=0.0, eps_max=0.01, point_loss="relu")),
        ("table_A13", "_eps0.05", dict(c_pitc=0.1, c_pisc=0.0, eps_max=0.05)),
        ("table_A14", "_fraction20", dict(c_pitc=0.1, c_pisc=0.0, eps_max=0.01, fraction=0.2)),
        ("table_A16", "_piwsl", dict(c_pitc=0.1, c_pisc=0.01, eps_max=0.01)),
        ("table_A16", "_weak_label", dict(c_wl=0.1, eps_max=0.01)),
        ("table_A17", "(painn|v2)_weak_label_predicted_forces", dict(c_wl=1.0, wl_forces="predicted")),
        ("table_A17", "only_weak_label_predicted_forces", dict(c_wl=0.1, wl_forces="predicted")),
        ("table_A17", "only_weak_label", dict(c_wl=0.1, wl_forces="reference")),
        ("second_order", "_(second_order|trapezoid)", dict(k_2nd=0.5)),
    ],
)
def test_other_tables(table, pattern, expected):
    found = {name: run for name, run in recipe_runs(table).items() if re.search(f"{pattern}$", name)}
    assert found
    for name, config in found.items():
        settings = PIWSLSettings.from_config(config["optim"]["piwsl"])
        assert {key: getattr(settings, key) for key in expected} == expected, name
        terms = [
            (target, term["coefficient"])
            for entry in config["loss_functions"]
            for target, term in entry.items()
        ]
        model = re.search(r"/(painn|equiformer_v2|escn|spinconv|schnet)", name)
        energy, forces = COEFFICIENTS[model[1]] if model else (1, 100)
        without_forces = "energies_only" in name
        assert terms == (
            [("energy", energy)] if without_forces else [("energy", energy), ("forces", forces)]
        ), name


def test_gradient_models_are_the_direct_ones_otherwise():
    for name in ("painn", "equiformer_v2"):
        direct, wrapped = loaded(f"models/{name}.yml"), loaded(f"models/{name}_gradient.yml")
        inner = wrapped.pop("model")["model"]
        outer = direct.pop("model")
        for key in ("regress_forces", "direct_forces", "otf_graph"):
            outer.pop(key, None)
        assert inner == outer
        assert wrapped == direct


# ------------------------------------------------------------------------------------------ files


def test_every_file_loads_without_conflicts():
    for path in paths():
        config, replaced, conflicts = _loaded(path)
        assert not conflicts, path
        # a replaced key is announced at every start, so few runs may have any
        allowed = {"loss_functions", "optim.batch_size", "optim.max_epochs"}
        if path.stem in ("mace_off", "mace_mp"):
            allowed = {"dataset.train.transforms.element_references.energy.file"}
        assert set(replaced) <= allowed, path
        PIWSLSettings.from_config(config.get("optim", {}).get("piwsl"))
        if is_run(path):
            parts = {
                "trainer",
                "logger",
                "dataset",
                "outputs",
                "loss_functions",
                "evaluation_metrics",
                "model",
            }
            assert set(config) == parts | {"optim"}, path


def test_included_parts_are_all_used():
    text = "".join(path.read_text() for path in paths() if is_run(path))
    for folder in ("datasets", "models", "cases"):
        for path in (CONFIGS / folder).glob("*.yml"):
            assert f"/{folder}/{path.name}\n" in text, path


def test_few_files():
    assert len(list((ROOT / "configs").rglob("*.yml"))) <= 200


def test_the_page_has_the_cases_of_table_a3():
    page = (ROOT / "docs" / "configs.md").read_text()
    linked = re.findall(r"\[([A-H])\]\(\.\./configs/s2ef/([^/]+)/(\w+)\.yml\)", page)
    assert {(dataset, model): case for case, dataset, model in linked} == cells()


def test_links_of_the_page_lead_to_files():
    page = (ROOT / "docs" / "configs.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert (ROOT / "docs" / target).exists(), target


# ------------------------------------------------------------------------------------------ models


def small(block: dict[str, Any], name: str) -> dict[str, Any]:
    """A block `model` with few parameters."""
    block = copy.deepcopy(block)
    block.get("model", block).update(SMALL[name.removesuffix("_gradient")])
    return block


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("schnet", 9.1),
        ("painn", 20.1),
        ("spinconv", 8.5),
        ("escn", 51.8),
        ("equiformer_v2", 31.1),
        ("painn_gradient", 18.7),
        ("equiformer_v2_gradient", 27.9),
    ],
)
def test_full_size(name, millions):
    block = loaded(f"models/{name}.yml")["model"]
    model = registry.get_model_class(block.pop("name"))(**block)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(
        millions * 1e6, rel=0.01
    )


@pytest.mark.parametrize("name", ["mace_off", "mace_mp"])
def test_fine_tuning_configs_name_real_settings(name):
    block = loaded(f"models/{name}.yml")["model"]
    inspect.signature(registry.get_model_class(block.pop("name"))).bind(**block)
    assert block["ev_per_output"] == KCAL_PER_MOL


#: recipe and name of the run, or a config and a method of the command line
RUNS = [
    *(("--method", f"ani1x_1000/{model}_{method}") for model in MODELS for method in METHODS),
    *(
        ("table_A16", f"ani1x_1000/{model}_gradient_{method}")
        for model in ("painn", "equiformer_v2")
        for method in ("baseline", "weak_label", "piwsl")
    ),
    *(("aspirin_models", f"rmd17_aspirin_100/mace_{method}") for method in ("baseline", "piwsl")),
    ("table_6", "ani1x_1000/painn_adversarial"),
    ("second_order", "rmd17_aspirin_100/painn_second_order"),
    ("table_3", "ani1x_1000/painn_energies_only_piwsl"),
]


@pytest.mark.parametrize(("recipe", "run"), RUNS)
def test_training_steps(recipe, run, tiny_data: Path, tmp_path: Path):
    """Two steps and a validation, with everything from the recipe but sizes and data."""
    model = max((name for name in SMALL if f"/{name}_" in run), key=len)
    if model == "mace":
        pytest.importorskip("mace")
    if recipe == "--method":
        config = loaded(f"ani1x_1000/{model}.yml", run.partition(f"/{model}_")[2])
    else:
        config = copy.deepcopy(recipe_runs(recipe)[run])
    config["dataset"]["train"]["transforms"].pop("element_references")
    for split in ("train", "val", "test"):
        config["dataset"][split]["src"] = str(tiny_data / f"{split}.lmdb")
    config["model"] = small(config["model"], model)
    config["optim"].update(batch_size=6, eval_batch_size=6, max_epochs=1, eval_every=2)
    trainer = make_trainer({**config, "run_dir": str(tmp_path)})
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert trainer.step == 2
    changed = [
        not torch.equal(a, b)
        for a, b in zip(before, trainer.model.parameters(), strict=True)
        if b.requires_grad
    ]
    assert sum(changed) > len(changed) / 2
    assert 0 < trainer.best_val_metric < math.inf
    assert list(tmp_path.rglob("best_checkpoint.pt"))


# ------------------------------------------------------------------------------------------ own data


def test_own_data_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The config of the page's section "My own data", with a data set as `piwsl prepare` writes it."""
    from fairchem_piwsl.datasets.prepare import prepare

    page = (ROOT / "docs" / "configs.md").read_text()
    text = re.search(r"## My own data.*?```yaml\n(.*?)```", page, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.yml").write_text(text)
    structures = labelled_molecules(12)
    for atoms in structures:
        atoms.get_forces()  # EMT labels when asked
    write("mine.extxyz", structures)
    prepare(["mine.extxyz"], out="data/mine", train=6, val=3, test=3, quiet=True, trust_units=True)
    config, replaced, conflicts = load_config("mine.yml")
    assert not replaced
    assert not conflicts
    config["model"] = small(config["model"], "painn")
    config["optim"].update(max_epochs=1, eval_every=1)
    trainer = make_trainer({**config, "run_dir": str(tmp_path)})
    assert trainer.piwsl.c_pitc == 1.0
    trainer.train()
    assert 0 < trainer.best_val_metric < math.inf
