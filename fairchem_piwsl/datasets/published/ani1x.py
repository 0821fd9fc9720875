"""ANI-1x, `ani1x-release.h5`: one HDF5 group for each formula, several levels of theory, NaN where one is missing."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from fairchem_piwsl.datasets.ase_files import broken
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled, no_forces


def _hdf5(path: Path) -> Any:
    """The open file; the library comes with fairchem 1.10's dependencies only."""
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading HDF5 needs the package h5py; run `pip install h5py`.") from None
    return h5py.File(path, "r")


class Ani1xSource:
    """The structures that have the labels of one level, e.g. `wb97x_dz` or `ccsd(t)_cbs` (energies alone)."""

    def __init__(self, path: Path, level: str = "wb97x_dz"):
        self.path = path
        self.name = path.name
        self.paths = [path]
        self.level = level
        self.energy, self.forces = f"{level}.energy", f"{level}.forces"

    @cached_property
    def _groups(self) -> dict[str, np.ndarray]:
        """Group name -> indices of the structures with labels."""
        found: dict[str, np.ndarray] = {}
        with broken(self.path), _hdf5(self.path) as file:
            levels = sorted(
                {key.rsplit(".", 1)[0] for group in file.values() for key in group if ".energy" in key}
            )
            if self.level not in levels:
                remedy = f"--level {' or '.join(levels)}" if levels else "ANI-1x's file as published"
                raise UserError(f"{self.path} has no level {self.level}; give {remedy}.")
            for name in sorted(file):
                group = file[name]
                if self.energy not in group:
                    continue
                labelled = np.isfinite(group[self.energy][()].reshape(-1))
                if self.forces in group:
                    labelled &= np.isfinite(group[self.forces][()]).all(axis=(1, 2))
                found[name] = np.flatnonzero(labelled)
        return found

    @cached_property
    def has_forces(self) -> bool:
        """Whether this level has forces wherever it has energies."""
        with broken(self.path), _hdf5(self.path) as file:
            return all(self.forces in group for group in file.values() if self.energy in group)

    @cached_property
    def unlabelled(self) -> int:
        """Structures of the file without labels of this level."""
        with broken(self.path), _hdf5(self.path) as file:
            return sum(len(group["coordinates"]) for group in file.values()) - self.count()

    def count(self) -> int:
        return sum(len(indices) for indices in self._groups.values())

    def read(self, indices: Sequence[int]) -> Iterator[Labelled]:
        wanted = np.asarray(indices)
        start = 0
        with _hdf5(self.path) as file:
            for name, labelled in self._groups.items():
                here = wanted[(wanted >= start) & (wanted < start + len(labelled))] - start
                start += len(labelled)
                if len(here):
                    yield from self._read_group(file[name], name, labelled[here])

    def _read_group(self, group: Any, name: str, rows: np.ndarray) -> Iterator[Labelled]:
        with broken(self.path):
            numbers = group["atomic_numbers"][()].astype(int)
            positions = group["coordinates"][rows].astype(float)
            energies = group[self.energy][rows].reshape(-1).astype(float) * units.Hartree
            forces = None
            if self.forces in group:
                forces = group[self.forces][rows].astype(float) * units.Hartree
        for k, row in enumerate(rows):
            yield Labelled(
                Atoms(numbers, positions[k]),
                float(energies[k]),
                no_forces(len(numbers)) if forces is None else forces[k],
                f"{name}:{row}",
            )
