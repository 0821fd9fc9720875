"""Small labelled structures and a reader of what `prepare` wrote."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from unittest import mock

import lmdb
import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from torch_geometric.data import Data

from fairchem_piwsl import cli

#: Hartree-Fock energies of the free atoms H, C, O in eV: an all-electron zero of energy
FREE_ATOMS_EV = {1: -13.6057, 6: -1025.57, 8: -2035.66}


def labelled(atoms: Atoms, factor: float = 1.0, zero: dict[int, float] | None = None) -> Atoms:
    """The structure with EMT labels (plus `zero` for each atom) in a unit of 1 / `factor` eV."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    energy = atoms.get_potential_energy() + sum((zero or {}).get(z, 0.0) for z in atoms.numbers)
    atoms.calc = SinglePointCalculator(atoms, energy=energy * factor, forces=atoms.get_forces() * factor)
    return atoms


def molecules(
    count: int,
    seed: int = 0,
    names: tuple[str, ...] = ("CH3OH", "H2O", "CH4"),
    factor: float = 1.0,
    zero=None,
) -> list[Atoms]:
    """Distorted molecules without a cell, anywhere in space."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(count):
        atoms = molecule(names[i % len(names)])
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape) + rng.uniform(-9, 9, 3)
        frames.append(labelled(atoms, factor, zero))
    return frames


def crystals(count: int, seed: int = 0) -> list[Atoms]:
    """Distorted copper cells, with some atoms outside the cell."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape) - 1.0
        frames.append(labelled(atoms))
    return frames


def save(path: Path, frames: list[Atoms], **options) -> Path:
    """Write frames with ASE and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, frames, **options)
    return path


def records(out: Path, split: str = "train") -> list[Data]:
    """The pickled records of a split, in order of their keys."""
    env = lmdb.open(str(out / split / "data.lmdb"), subdir=False, readonly=True, lock=False)
    with env.begin() as transaction:
        length = pickle.loads(transaction.get(b"length"))
        found = [pickle.loads(transaction.get(str(i).encode())) for i in range(length)]
    env.close()
    return found


def run_piwsl(arguments: list[str]) -> int:
    """Exit code of the `piwsl` command line, run in this process."""
    with mock.patch.object(sys, "argv", ["piwsl", *arguments]):
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def sids(out: Path, split: str = "train") -> list[str]:
    """Identifiers of a split's structures."""
    return [data.sid for data in records(out, split)]
