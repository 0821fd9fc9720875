"""Tiny data sets and tiny trained checkpoints for the tests of `fairchem_piwsl.analysis`."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from shutil import copy

import lmdb
import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from torch_geometric.data import Data

import fairchem_piwsl  # noqa: F401  makes fairchem importable everywhere

MODELS = {
    "schnet": {
        "name": "schnet",
        "hidden_channels": 16,
        "num_filters": 16,
        "num_interactions": 2,
        "num_gaussians": 20,
        "cutoff": 5.0,
        "use_pbc": True,
        "regress_forces": True,
        "otf_graph": True,
    },
    "painn": {
        "name": "painn",
        "hidden_channels": 16,
        "num_layers": 2,
        "num_rbf": 16,
        "cutoff": 5.0,
        "max_neighbors": 30,
        "use_pbc": True,
        "regress_forces": True,
        "direct_forces": True,
        "otf_graph": True,
    },
}


def rattled(names: Sequence[str], count: int, amplitude: float = 0.05, seed: int = 0) -> list[Atoms]:
    """`count` shaken copies of ASE's molecules `names` in turn, with EMT's energies and forces."""
    random = np.random.default_rng(seed)
    structures = []
    for number in range(count):
        atoms = molecule(names[number % len(names)], vacuum=10.0, pbc=True)
        atoms.positions += random.normal(scale=amplitude, size=(len(atoms), 3))
        atoms.calc = EMT()
        atoms.get_forces()
        structures.append(atoms)
    return structures


def write_lmdb(
    path: Path,
    structures: Sequence[Atoms],
    forces: bool = True,
    names: tuple[str, str] = ("energy", "forces"),
) -> Path:
    """Write `structures` with their calculators' labels as fairchem's LMDB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(path), subdir=False, map_size=2**24) as environment,
        environment.begin(write=True) as out,
    ):
        for number, atoms in enumerate(structures):
            data = Data(
                pos=torch.tensor(atoms.positions, dtype=torch.float32),
                cell=torch.tensor(atoms.cell.array, dtype=torch.float32).view(1, 3, 3),
                atomic_numbers=torch.tensor(atoms.numbers, dtype=torch.uint8),
                natoms=len(atoms),
                tags=torch.zeros(len(atoms), dtype=torch.int),
                fixed=torch.zeros(len(atoms), dtype=torch.int),
                pbc=torch.ones(3, dtype=torch.bool),
                sid=number,
            )
            data[names[0]] = atoms.get_potential_energy()
            if forces:
                data[names[1]] = torch.tensor(atoms.get_forces(), dtype=torch.float32)
            out.put(str(number).encode(), pickle.dumps(data))
        out.put(b"length", pickle.dumps(len(structures)))
    return path


def train(
    model: str,
    data: Path,
    run_dir: Path,
    epochs: int = 2,
    seed: int = 0,
    identifier: str = "",
    piwsl: dict | None = None,
    **options,
) -> Path:
    """Train a tiny stock model for a few steps and return the folder with its checkpoints.

    `piwsl` is only recorded in the config: the stock trainer does not know these losses.
    """
    from fairchem.core.common.utils import setup_imports
    from fairchem.core.trainers import OCPTrainer

    setup_imports()
    run_dir.mkdir(parents=True, exist_ok=True)
    energies = np.array([atoms.get_potential_energy() for atoms in rattled(["CH3CH2OH"], 8)])
    trainer = OCPTrainer(
        task={},
        model={**MODELS[model], **options},
        outputs={
            "energy": {"level": "system"},
            "forces": {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True},
        },
        dataset={
            "train": {
                "format": "lmdb",
                "src": str(data),
                "transforms": {
                    "normalizer": {
                        "energy": {"mean": float(energies.mean()), "stdev": 0.5},
                        "forces": {"mean": 0.0, "stdev": 0.5},
                    }
                },
            },
            "val": {"format": "lmdb", "src": str(copy(data, run_dir / "val.lmdb"))},
        },
        loss_functions=[
            {"energy": {"fn": "mae", "coefficient": 1}},
            {"forces": {"fn": "l2mae", "coefficient": 10}},
        ],
        evaluation_metrics={
            "metrics": {"energy": ["mae"], "forces": ["mae"]},
            "primary_metric": "forces_mae",
        },
        optimizer={
            "batch_size": 4,
            "eval_batch_size": 8,
            "num_workers": 0,
            "lr_initial": 0.005,
            "optimizer": "AdamW",
            "max_epochs": epochs,
            "scheduler": "Null",
            "clip_grad_norm": 10.0,
            "ema_decay": 0.9,
            **({"piwsl": piwsl} if piwsl else {}),
        },
        identifier=identifier,
        timestamp_id=identifier or model,
        run_dir=str(run_dir),
        local_rank=0,
        print_every=1,
        seed=seed,
        logger="tensorboard",
        cpu=True,
        name="ocp",
    )
    trainer.train(disable_eval_tqdm=True)
    trainer.save()
    return Path(trainer.config["cmd"]["checkpoint_dir"])
