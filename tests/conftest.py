"""Tiny data sets and configs that every test may start from."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from torch_geometric.data import Data

import fairchem_piwsl.trainer  # noqa: F401  registers `piwsl_forces`
from fairchem_piwsl.units import KCAL_PER_MOL

# Tests compare runs in this process and in others bit for bit: all of them have to use one thread.
os.environ["OMP_NUM_THREADS"] = "1"

MODELS: dict[str, dict[str, Any]] = {
    "painn": dict(name="painn", hidden_channels=16, num_layers=2, num_rbf=16, cutoff=5.0, max_neighbors=20),
    "schnet": dict(
        name="schnet", hidden_channels=16, num_filters=16, num_interactions=2, num_gaussians=16, cutoff=5.0
    ),
}
for _model in MODELS.values():
    _model.update(otf_graph=True, use_pbc=True, regress_forces=True)


collect_ignore = ["fairchem2"]  # those run in an environment of their own: make test-fairchem2


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of SLURM share one cluster, those of a file its trainings: such tests run in one process each."""
    for item in items:
        if item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.xdist_group("slurm"))
        elif any(fixtures[-1].scope == "module" for fixtures in item._fixtureinfo.name2fixturedefs.values()):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))


@pytest.fixture(scope="session", autouse=True)
def _upstream_imports() -> None:
    setup_imports()
    torch.set_num_threads(1)


def labelled_molecules(count: int, seed: int = 0) -> list[Atoms]:
    """Distorted molecules of different sizes, labelled by ASE's EMT (eV, eV/Angstrom)."""
    rng = np.random.default_rng(seed)
    structures = []
    for i in range(count):
        atoms = molecule(("CH3OH", "H2O", "CH4")[i % 3], cell=[20.0] * 3, pbc=True)
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = EMT()
        structures.append(atoms)
    return structures


def to_data(atoms: Atoms, sid: int, energy: bool = True, forces: bool = True) -> Data:
    """A structure in upstream's layout; a label that is left out is not in the record at all."""
    data = Data(
        pos=torch.tensor(atoms.positions, dtype=torch.float32),
        atomic_numbers=torch.tensor(atoms.numbers),
        cell=torch.tensor(np.array(atoms.cell), dtype=torch.float32)[None],
        natoms=len(atoms),
        tags=torch.zeros(len(atoms), dtype=torch.long),
        fixed=torch.zeros(len(atoms)),
        sid=sid,
    )
    if energy:
        data.energy = torch.tensor(atoms.get_potential_energy(), dtype=torch.float32)
    if forces:
        data.forces = torch.tensor(atoms.get_forces(), dtype=torch.float32)
    return data


def write_lmdb(path: Path, records: list[Data]) -> Path:
    """Write records as upstream's LMDB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    env = lmdb.open(str(path), map_size=2**26, subdir=False)
    with env.begin(write=True) as txn:
        for i, record in enumerate(records):
            txn.put(str(i).encode(), pickle.dumps(record))
        txn.put(b"length", pickle.dumps(len(records)))
    env.close()
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.lmdb (12), val.lmdb (6) and test.lmdb (6)."""
    folder = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate({"train": 12, "val": 6, "test": 6}.items()):
        structures = labelled_molecules(count, seed)
        write_lmdb(folder / f"{split}.lmdb", [to_data(atoms, i) for i, atoms in enumerate(structures)])
    return folder


def make_config(
    data: Path, run_dir: Path, model: str = "painn", piwsl: dict | None = None, **optim: Any
) -> dict:
    """A fairchem config in the layout of a YAML file; training works in kcal/mol."""
    unit = {"mean": 0.0, "stdev": KCAL_PER_MOL}
    config = {
        "trainer": "piwsl_forces",
        "logger": "tensorboard",
        "dataset": {
            "train": {
                "format": "lmdb",
                "src": str(data / "train.lmdb"),
                "transforms": {"normalizer": {"energy": unit, "forces": unit}},
            },
            "val": {"src": str(data / "val.lmdb")},
            "test": {"src": str(data / "test.lmdb")},
        },
        "outputs": {
            "energy": {"level": "system"},
            "forces": {
                "level": "atom",
                "train_on_free_atoms": True,
                "eval_on_free_atoms": True,
            },
        },
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 1}},
            {"forces": {"fn": "l2mae", "coefficient": 100}},
        ],
        "evaluation_metrics": {
            "metrics": {"energy": ["mae"], "forces": ["mae", "cosine_similarity"]},
            "primary_metric": "forces_mae",
        },
        "model": MODELS[model],
        "optim": {
            "batch_size": 4,
            "eval_batch_size": 3,
            "num_workers": 0,
            "lr_initial": 1e-3,
            "optimizer": "AdamW",
            "scheduler": "Null",
            "max_epochs": 2,
            "ema_decay": 0.99,
            "clip_grad_norm": 10,
            **({"piwsl": piwsl} if piwsl is not None else {}),
            **optim,
        },
        "run_dir": str(run_dir),
    }
    return copy.deepcopy(config)


def make_trainer(config: dict, trainer: str | None = None, seed: int = 0, **overrides: Any):
    """The trainer that fairchem would build from a config, in this process and without a process group.

    It gets copies of the data sets, since LMDB refuses to open a file twice in one process.
    """
    config = copy.deepcopy(config)
    for split in config["dataset"].values():
        source = Path(split["src"])
        if source.is_file():
            folder = Path(tempfile.mkdtemp(dir=config["run_dir"]))
            split["src"] = str(shutil.copy(source, folder / source.name))
    arguments = dict(
        task=config.get("task", {}),
        model=config["model"],
        outputs=config["outputs"],
        dataset=config["dataset"],
        optimizer=config["optim"],
        loss_functions=config["loss_functions"],
        evaluation_metrics=config["evaluation_metrics"],
        identifier="test",
        local_rank=0,
        run_dir=config["run_dir"],
        logger=config["logger"],
        print_every=1,
        seed=seed,
        cpu=True,
        name="ocp",
    )
    arguments.update(overrides)
    return registry.get_trainer_class(trainer or config["trainer"])(**copy.deepcopy(arguments))


def parameters(trainer) -> list[torch.Tensor]:
    """Copies of a trainer's parameters."""
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


@pytest.fixture(scope="session")
def analysis_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a trained model, a data set, and files like them that are broken."""
    from helpers_broken_inputs import write_inputs

    return write_inputs(tmp_path_factory.mktemp("analysis_inputs"))


@pytest.fixture(scope="session")
def run_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, a finished run of it, and checkpoints of all wrong kinds."""
    from helpers_run_inputs import write_run_inputs

    return write_run_inputs(tmp_path_factory.mktemp("run_inputs"))
