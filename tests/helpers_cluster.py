"""A training of seconds for tests of checkpoints, submission and sweeps: few atoms, a small SchNet."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import yaml
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.db import connect
from fairchem.core.preprocessing import AtomsToGraphs


def write_data(folder: Path, train: int = 8, val: int = 4) -> dict[str, Path]:
    """ASE databases of argon trimers, energies in eV and forces in eV/Angstrom."""
    rng = np.random.default_rng(7)
    paths = {}
    for name, count in (("train", train), ("val", val)):
        paths[name] = folder / f"{name}.db"
        with connect(paths[name]) as database:
            for _ in range(count):
                positions = np.array([[0.0, 0, 0], [3.6, 0, 0], [1.8, 3.1, 0]]) + rng.normal(0, 0.2, (3, 3))
                atoms = Atoms("Ar3", positions=positions + 10, cell=[20, 20, 20], pbc=True)
                atoms.calc = LennardJones(sigma=3.4, epsilon=0.01)
                atoms.get_potential_energy()
                atoms.get_forces()
                database.write(atoms)
    return paths


def write_lmdb(folder: Path, database: Path) -> Path:
    """The structures of an ASE database as upstream's LMDB."""
    path = folder / f"{database.stem}.lmdb"
    convert = AtomsToGraphs(r_energy=True, r_forces=True, r_pbc=True, r_edges=False).convert
    with lmdb.open(str(path), subdir=False, map_size=2**26) as file, file.begin(write=True) as transaction:
        rows = list(connect(database).select())
        for index, row in enumerate(rows):
            data = convert(row.toatoms())
            data.sid = data.fid = index
            transaction.put(str(index).encode(), pickle.dumps(data))
        transaction.put(b"length", pickle.dumps(len(rows)))
    return path


def make_config(folder: Path, **optim: Any) -> dict[str, Any]:
    """A config of upstream's form; `optim` replaces entries of its `optim` block."""
    paths = write_data(folder)
    reader = {"format": "ase_db", "a2g_args": {"r_energy": True, "r_forces": True}}
    return {
        "trainer": "ocp",
        "logger": "tensorboard",
        "dataset": {name: {"src": str(path), **reader} for name, path in paths.items()},
        "model": {
            "name": "schnet",
            "hidden_channels": 8,
            "num_filters": 8,
            "num_interactions": 1,
            "num_gaussians": 8,
            "cutoff": 6.0,
            "use_pbc": True,
            "regress_forces": True,
            "otf_graph": True,
        },
        "outputs": {
            "energy": {"level": "system"},
            "forces": {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True},
        },
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 1}},
            {"forces": {"fn": "l2mae", "coefficient": 10}},
        ],
        "evaluation_metrics": {
            "metrics": {"energy": ["mae"], "forces": ["mae"]},
            "primary_metric": "forces_mae",
        },
        "task": {},
        "optim": {
            "batch_size": 2,
            "eval_batch_size": 4,
            "num_workers": 0,
            "lr_initial": 0.01,
            "optimizer": "AdamW",
            "scheduler": "CosineAnnealingLR",
            "T_max": 16,
            "max_epochs": 4,
            "ema_decay": 0.9,
            "clip_grad_norm": 10.0,
            **optim,
        },
    }


def write_config(folder: Path, config: dict[str, Any], name: str = "config.yml") -> Path:
    """`config` as YAML; returns its path."""
    path = folder / name
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def runnable(config: dict[str, Any], run_dir: Path, timestamp_id: str = "run", **more: Any) -> dict[str, Any]:
    """`config` with the keys that fairchem's command line adds, for one process on the CPU."""
    return {
        **config,
        "mode": "train",
        "identifier": "test",
        "timestamp_id": timestamp_id,
        "seed": 0,
        "is_debug": False,
        "run_dir": str(run_dir),
        "print_every": 1000,
        "amp": False,
        "checkpoint": None,
        "cpu": True,
        "submit": False,
        "summit": False,
        "world_size": 1,
        "distributed_backend": "gloo",
        "gp_gpus": None,
        "hide_eval_progressbar": True,
        **more,
    }
