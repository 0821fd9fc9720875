"""Mistakes that are found before a run writes anything."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lmdb
import pytest
import torch
from conftest import MODELS, labelled_molecules, make_config, make_trainer, to_data, write_lmdb

from fairchem_piwsl.datasets import lmdb_checks
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.data_checks import check_datasets
from fairchem_piwsl.training.preflight import check_config


@pytest.fixture
def config(tiny_data, tmp_path) -> dict[str, Any]:
    return make_config(tiny_data, tmp_path / "run", piwsl={"c_pitc": 0.1})


def error(config: dict[str, Any]) -> str:
    """The message of a refused run, which has left no trace."""
    run_dir = Path(config["run_dir"])
    run_dir.mkdir(exist_ok=True)
    with pytest.raises(UserError) as caught:
        make_trainer(config)
    # the copies of data sets that make_trainer makes are not the trainer's
    assert not [path for path in run_dir.iterdir() if not path.name.startswith("tmp")]
    message = str(caught.value)
    assert "\n" not in message
    return message


def records(**left_out: bool) -> list:
    return [to_data(atoms, i, **left_out) for i, atoms in enumerate(labelled_molecules(3))]


def test_good_config_passes(config, tmp_path):
    (tmp_path / "run").mkdir()
    assert make_trainer(config).evaluation_metrics["primary_metric"] == "forces_mae"


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_missing_data_set(config, split):
    config["dataset"][split]["src"] = "nowhere/data.lmdb"
    message = error(config)
    assert f"dataset.{split}.src: nowhere/data.lmdb does not exist" in message
    assert "piwsl prepare" in message


@pytest.mark.parametrize("keep", [0, 100, 5000, 8192, 20000])
@pytest.mark.parametrize("split", ["train", "val"])
def test_truncated_data_set(config, tiny_data, tmp_path, keep, split):
    damaged = tmp_path / "damaged.lmdb"
    damaged.write_bytes((tiny_data / f"{split}.lmdb").read_bytes()[:keep])
    config["dataset"][split]["src"] = str(damaged)
    message = error(config)
    assert f"dataset.{split}.src: " in message
    assert "damaged.lmdb" in message
    assert "piwsl prepare" in message


def test_short_file_is_tried_in_another_process(tiny_data, tmp_path):
    """A file may be shorter than its header says, where the pages at its end are free."""
    whole = tiny_data / "train.lmdb"
    assert lmdb_checks._survives_reading(whole)
    cut = tmp_path / "cut.lmdb"
    cut.write_bytes(whole.read_bytes()[:20000])
    assert not lmdb_checks._survives_reading(cut)


def test_text_file_in_place_of_a_data_set(config, tmp_path):
    text = tmp_path / "text.lmdb"
    text.write_text("not a data base\n" * 1000)
    config["dataset"]["train"]["src"] = str(text)
    assert "cannot be read as LMDB" in error(config)


def test_empty_data_set(config, tmp_path):
    config["dataset"]["train"]["src"] = str(write_lmdb(tmp_path / "empty.lmdb", []))
    assert "holds no structures" in error(config)


def test_no_labels_at_all(config, tmp_path):
    data = records(energy=False, forces=False)
    for record in data:
        record.y = torch.zeros(1)
    config["dataset"]["train"]["src"] = str(write_lmdb(tmp_path / "bare.lmdb", data))
    message = error(config)
    assert "has none of the labels energy, forces" in message
    assert "key_mapping" in message


def test_key_mapping_gives_labels_their_names(config, tmp_path):
    for split in ("train", "val", "test"):
        data = records()
        for record in data:
            record.y, record.force = record.energy, record.forces
            del record.energy, record.forces
        write_lmdb(tmp_path / f"{split}.lmdb", data)
        config["dataset"][split]["src"] = str(tmp_path / f"{split}.lmdb")
    config["dataset"]["train"]["key_mapping"] = {"y": "energy", "force": "forces"}
    (tmp_path / "run").mkdir()
    make_trainer(config).train(disable_eval_tqdm=True)


@pytest.mark.parametrize("primary", ["forces_mae", "forces_rmse", "forces_cosine_similarity"])
def test_primary_metric_without_labels(config, tmp_path, primary):
    config["dataset"]["val"]["src"] = str(write_lmdb(tmp_path / "bare.lmdb", records(forces=False)))
    config["evaluation_metrics"]["primary_metric"] = primary
    message = error(config)
    assert f"primary_metric '{primary}' needs force labels" in message
    assert "--evaluation_metrics.primary_metric=energy_rmse" in message


def test_primary_metric_is_chosen_by_what_is_labelled(config, tmp_path):
    (tmp_path / "run").mkdir()
    del config["evaluation_metrics"]["primary_metric"]
    assert make_trainer(config).evaluation_metrics["primary_metric"] == "forces_rmse"
    config["dataset"]["val"]["src"] = str(write_lmdb(tmp_path / "bare.lmdb", records(forces=False)))
    assert make_trainer(config).evaluation_metrics["primary_metric"] == "energy_rmse"


@pytest.mark.parametrize("name", ["energy", "forces"])
@pytest.mark.parametrize("piwsl", [{"c_pitc": 1}, {"c_pisc": 1}, {"c_wl": 1}, {"validate_consistency": True}])
def test_weak_terms_need_energy_and_forces(config, name, piwsl):
    del config["outputs"][name]
    config["loss_functions"] = [loss for loss in config["loss_functions"] if name not in loss]
    config["optim"]["piwsl"] = piwsl
    message = error(config)
    assert f"'outputs' has no '{name}'" in message
    assert f"add outputs.{name}" in message


def test_model_that_must_not_predict_forces(config):
    config["model"] = {**MODELS["painn"], "regress_forces": False}
    assert "model.regress_forces: true" in error(config)


@pytest.mark.parametrize("key", ["stdev", "rmsd"])
@pytest.mark.parametrize("width", [0, -1.0])
def test_normaliser_without_width(config, key, width):
    config["dataset"]["train"]["transforms"]["normalizer"]["energy"] = {"mean": 0.0, key: width}
    assert f"dataset.train.transforms.normalizer.energy.{key} must be a finite number > 0" in error(config)


def test_relaxations_need_structures_to_relax(config, tiny_data):
    config |= {"trainer": "ocp", "mode": "run-relaxations"}
    with pytest.raises(UserError, match=r"dataset\.relax, which is missing"):
        check_config(config)
    config["dataset"]["relax"] = {"src": str(tiny_data / "val.lmdb")}
    check_config(config)


HYDRA = {
    "name": "hydra", "otf_graph": True, "pass_through_head_outputs": False,
    "backbone": {
        "model": "painn_backbone", "hidden_channels": 16, "num_layers": 1, "num_rbf": 8, "cutoff": 5.0,
        "max_neighbors": 20, "use_pbc": True, "otf_graph": True, "regress_forces": True, "direct_forces": True,
    },
}  # fmt: skip


def test_heads_that_return_dictionaries_need_a_property(config):
    heads = {"energy": {"module": "painn_energy_head"}, "forces": {"module": "painn_force_head"}}
    config["model"] = {**HYDRA, "heads": heads}
    assert "outputs.energy.property is none of the outputs energy of its head" in error(config)
    for name in ("energy", "forces"):
        config["outputs"][name]["property"] = name
    make_trainer(config)


def test_outputs_of_other_names(config):
    """Upstream's trainer takes any; the plugin's then has no metric of its own for the best checkpoint."""
    config["model"] = {**HYDRA, "heads": {"gap": {"module": "painn_energy_head"}}}
    config["outputs"] = {"gap": {"level": "system", "property": "energy"}}
    config["loss_functions"] = [{"gap": {"fn": "mae", "coefficient": 1}}]
    config["evaluation_metrics"] = {"metrics": {"gap": ["mae"]}, "primary_metric": "gap_mae"}
    config["dataset"]["train"] |= {"key_mapping": {"energy": "gap"}, "transforms": {}}
    del config["optim"]["piwsl"]
    assert check_config({**config, "trainer": "ocp"}) == "gap_mae"
    assert check_config(config) == "gap_mae"
    del config["evaluation_metrics"]["primary_metric"]
    assert "evaluation_metrics.primary_metric is missing; name a validation metric, such as gap_mae" in error(
        config
    )


def test_unknown_setting(config):
    config["optim"]["piwsl"] = {"c_ptic": 1.0}
    assert "optim.piwsl.c_ptic is not a setting; did you mean 'c_pitc'?" in error(config)


def test_fine_tuning_from_a_missing_file(config):
    config["optim"]["finetune_from"] = "nowhere/best_checkpoint.pt"
    assert "nowhere/best_checkpoint.pt does not exist" in error(config)


def test_checks_do_not_change_the_config(config, tmp_path):
    before = copy.deepcopy(config)
    (tmp_path / "run").mkdir()
    make_trainer(config)
    assert config == before


def test_a_file_may_be_open_already(tiny_data):
    """The versions of lmdb that are asked for allow it: one file may serve two splits."""
    source = tiny_data / "train.lmdb"
    outputs = {"energy": {"level": "system"}, "forces": {"level": "atom"}}
    with lmdb.open(str(source), subdir=False, readonly=True, lock=False):
        labels = check_datasets({"train": {"src": str(source)}}, outputs, torch.nn.Identity())
    assert labels == {"train": {"energy", "forces"}}
