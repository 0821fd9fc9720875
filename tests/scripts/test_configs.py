"""Every file in configs/s2ef: the paper's tables, loading, building, and training steps with each model and method."""

from __future__ import annotations

import copy
import csv
import importlib.util
import inspect
import math
import re
import sys
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

from fairchem_piwsl.settings import PIWSLSettings

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "s2ef"
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


def loaded(path: str | Path) -> dict[str, Any]:
    """A config as fairchem reads it."""
    return copy.deepcopy(_loaded(CONFIGS / path)[0])


def is_run(path: Path) -> bool:
    """Whether a file is a complete config and not a part of one."""
    return path.name == "example.yml" or path.parent.parent.name in ("cells", "tables")


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
        config = loaded(f"cells/{dataset}/{model}_piwsl.yml")
        settings = PIWSLSettings.from_config(config["optim"]["piwsl"])
        assert (settings.c_pitc, settings.c_pisc, settings.eps_max) == cases[case], (dataset, model)
        assert settings.k_2nd == 0
        assert not settings.noisy_nodes


def test_every_cell_has_its_data_model_and_loss():
    for dataset, model in cells():
        for method in METHODS:
            config = loaded(f"cells/{dataset}/{model}_{method}.yml")
            where = (dataset, model, method)
            for split in ("train", "val", "test"):
                assert config["dataset"][split]["src"] == f"data/{dataset}/{split}/data.lmdb", where
            kilocalorie = config["dataset"]["train"]["transforms"]["normalizer"]
            assert kilocalorie == {key: {"mean": 0.0, "stdev": 0.0433641} for key in ("energy", "forces")}
            assert config["model"]["name"].lower().endswith(model), where
            energy, forces = config["loss_functions"]
            assert energy["energy"] == {"fn": "mae", "coefficient": COEFFICIENTS[model][0]}, where
            assert forces["forces"] == {"fn": "l2mae", "coefficient": COEFFICIENTS[model][1]}, where


def test_every_cell_has_batch_and_epochs_of_tables_a1_and_a2():
    for dataset, model in cells():
        optim = loaded(f"cells/{dataset}/{model}_piwsl.yml")["optim"]
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
        runs = {method: loaded(f"cells/{dataset}/{model}_{method}.yml") for method in METHODS}
        blocks = {name: PIWSLSettings.from_config(run["optim"].pop("piwsl")) for name, run in runs.items()}
        assert all(run == runs["baseline"] for run in runs.values()), (dataset, model)
        assert not blocks["baseline"].weak
        assert not blocks["baseline"].noisy_nodes
        assert blocks["noisy_nodes"].noisy_nodes
        assert (blocks["weak_label"].c_wl, blocks["weak_label"].c_pitc) == (1.0, 0.0)
        assert blocks["piwsl"].c_pitc > 0


#: (table, data set, model and variant) of what a table repeats from another -> its config
REPEATED = {
    r"4 ani1x (\w+)_pitc\+pisc": r"cells/ani1x_1000/\1_piwsl",
    r"5 ani1x_no_forces (\w+)_baseline": r"tables/3_*/\1_direct_baseline",
    r"5 ani1x_no_forces (\w+)_pitc": r"tables/3_*/\1_direct_piwsl",
    r"5 ani1x_no_forces (\w+)_weak_label": r"tables/A17_*/no_forces_\1_weak_label",
    r"6 ani1x (\w+)_random": r"cells/ani1x_1000/\1_piwsl",
    r"A17 ani1x_no_forces (\w+)_baseline": r"tables/3_*/\1_direct_baseline",
    r"A18 ani1x (\w+)_pitc": r"cells/ani1x_1000/\1_piwsl",
}


def candidates(table: str, dataset: str, count: str, name: str) -> list[str]:
    """Where the config of one printed result may be, `name` being model and variant."""
    for pattern, target in REPEATED.items():
        match = re.fullmatch(pattern, f"{table} {dataset} {name}")
        if match:
            return [f"{match.expand(target)}.yml"]
    if dataset.endswith("_no_forces"):
        return [f"tables/{table}_*/{name}.yml", f"tables/{table}_*/no_forces_{name}.yml"]
    dataset = re.sub(r"_(other_sample|40000_iterations|80000_iterations|batch4)$", "", dataset)
    cell = f"{dataset}_{count}"
    return [f"tables/{table}_*/{name}.yml", f"tables/{table}_*/{cell}_{name}.yml", f"cells/{cell}/{name}.yml"]


def test_every_result_of_the_paper_has_a_config():
    reference = ROOT / "fairchem_piwsl" / "report" / "reference_results.csv"
    results = {
        (row["table"], row["dataset"], row["n_train"], f"{row['model']}_{row['variant']}")
        for row in csv.DictReader(reference.open())
        if row["variant"] != "reference_tuned"  # a potential of somebody else
    }
    assert len(results) > 200
    missing = [
        result
        for result in sorted(results)
        if not any(list(CONFIGS.glob(candidate)) for candidate in candidates(*result))
    ]
    assert not missing


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("3_*/*_piwsl", dict(c_pitc=0.1, c_pisc=0.0)),
        ("4_*/*_pitc", dict(c_pitc=1.2, c_pisc=0.0, eps_max=0.025)),
        ("4_*/*_pisc", dict(c_pitc=0.0, c_pisc=0.01, eps_max=0.025)),
        ("5_*/*_pitc", dict(c_pitc=1.0, c_pisc=0.0)),
        ("6_*/*", dict(perturbation="adversarial")),
        ("A10_*/*_pisc_case2", dict(c_pitc=0.1, c_pisc=0.001, eps_max=0.01, pisc_case=2)),
        ("A12_*/*_relu", dict(c_pitc=0.1, c_pisc=0.0, eps_max=0.01, point_loss="relu")),
        ("A13_*/*_eps0.05", dict(c_pitc=0.1, c_pisc=0.0, eps_max=0.05)),
        ("A14_*/*_fraction20", dict(c_pitc=0.1, c_pisc=0.0, eps_max=0.01, fraction=0.2)),
        ("A16_*/*_piwsl", dict(c_pitc=0.1, c_pisc=0.01, eps_max=0.01)),
        ("A16_*/*_weak_label", dict(c_wl=0.1, eps_max=0.01)),
        ("A17_*/[pe]*_predicted_forces", dict(c_wl=1.0, wl_forces="predicted")),
        ("A17_*/no_forces_*_predicted_forces", dict(c_wl=0.1, wl_forces="predicted")),
        ("A17_*/no_forces_*_label", dict(c_wl=0.1, wl_forces="reference")),
        ("second_order/*", dict(k_2nd=0.5)),
    ],
)
def test_other_tables(pattern, expected):
    found = list((CONFIGS / "tables").glob(f"{pattern}.yml"))
    assert found
    for path in found:
        config = loaded(path)
        settings = PIWSLSettings.from_config(config["optim"]["piwsl"])
        assert {name: getattr(settings, name) for name in expected} == expected, path
        targets = [target for term in config["loss_functions"] for target in term]
        without_forces = path.name.startswith("no_forces") or path.parent.name.startswith("3_")
        assert targets == (["energy"] if without_forces else ["energy", "forces"]), path


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
        if path.parent.name == "mace_fine_tuning":
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
    text = "".join(path.read_text() for path in paths() if path.parent.parent.name in ("cells", "tables"))
    for folder in ("datasets", "models", "methods", "cases"):
        for path in (CONFIGS / folder).glob("*.yml"):
            assert f"/{folder}/{path.name}\n" in text, path


def test_generated_files_and_lists_are_up_to_date():
    spec = importlib.util.spec_from_file_location("make_configs", ROOT / "scripts" / "make_configs.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules["make_configs"] = script
    spec.loader.exec_module(script)
    on_disk = {
        str(path.relative_to(CONFIGS)): path.read_text()
        for folder in ("cells", "tables")
        for path in (CONFIGS / folder).rglob("*.yml")
    }
    assert script.files() == on_disk
    page = (ROOT / "docs" / "configs.md").read_text()
    assert script.with_lists(page) == page


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
    assert block["ev_per_output"] == 0.0433641


RUNS = {
    **{
        f"{model} {method}": (model, f"cells/ani1x_1000/{model}_{method}.yml")
        for model in MODELS
        for method in METHODS
    },
    **{
        f"{model} {method}": (model, f"tables/A16_gradient_forces/{model}_{method}.yml")
        for model in ("painn_gradient", "equiformer_v2_gradient")
        for method in ("baseline", "weak_label", "piwsl")
    },
    **{f"mace {method}": ("mace", f"tables/mace/rmd17_aspirin_100_mace_{method}.yml") for method in ("baseline", "piwsl")},
    "painn adversarial": ("painn", "tables/6_adversarial/painn_adversarial.yml"),
    "painn second order": ("painn", "tables/second_order/rmd17_aspirin_100_painn.yml"),
    "painn energies alone": ("painn", "tables/3_no_force_labels/painn_direct_piwsl.yml"),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_training_steps(run, tiny_data: Path, tmp_path: Path):
    """Two steps and a validation, with everything from the file but sizes and data."""
    model, path = RUNS[run]
    if model == "mace":
        pytest.importorskip("mace")
    config = loaded(path)
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
    prepare(
        ["mine.extxyz"], out="data/mine", train=6, val=3, test=3, progress=False, quiet=True, trust_units=True
    )
    config, replaced, conflicts = load_config("mine.yml")
    assert not replaced
    assert not conflicts
    config["model"] = small(config["model"], "painn")
    config["optim"].update(max_epochs=1, eval_every=1)
    trainer = make_trainer({**config, "run_dir": str(tmp_path)})
    assert trainer.piwsl.c_pitc == 1.0
    trainer.train()
    assert 0 < trainer.best_val_metric < math.inf
