"""rMD17 and sGDML (MD22, MD17-CCSD(T)) files: many configurations of one molecule in an npz."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_piwsl.datasets.ase_files import broken
from fairchem_piwsl.datasets.structure import Structure
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.units import ENERGY_UNITS

#: names of atomic numbers, positions, energies and forces: rMD17, sGDML
_LAYOUTS = (("nuclear_charges", "coords", "energies", "forces"), ("z", "R", "E", "F"))


class NpzSource:
    """One npz file in kcal/mol (or the file's own `e_unit`) and Angstrom."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        self.paths = [path]

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        """Arrays numbers [N], positions and forces [n, N, 3], energies [n], in the file's units."""
        with broken(self.path), np.load(self.path, allow_pickle=True) as file:
            names = set(file.files)
            layout = next((keys for keys in _LAYOUTS if names.issuperset(keys)), None)
            if layout is None:
                raise UserError(
                    f"{self.path} has the arrays {', '.join(sorted(names))} but not {' '.join(_LAYOUTS[0])} "
                    f"or {' '.join(_LAYOUTS[1])}; give a file as published."
                )
            numbers, positions, energies, forces = (np.asarray(file[key]) for key in layout)
            unit = str(np.asarray(file["e_unit"]).astype(str)) if "e_unit" in names else "kcal/mol"
            index = np.asarray(file["old_indices"]) if "old_indices" in names else None
        energies = energies.reshape(len(positions)) if energies.size == len(positions) else energies
        if positions.ndim != 3 or forces.shape != positions.shape or energies.shape != positions.shape[:1]:
            raise UserError(
                f"{self.path} has positions {positions.shape}, energies {energies.shape} and forces "
                f"{forces.shape}, which do not belong together; give a file as published."
            )
        if numbers.reshape(-1).shape != positions.shape[1:2]:
            raise UserError(
                f"{self.path} has {numbers.size} atomic numbers for {positions.shape[1]} atoms; "
                f"give a file as published."
            )
        return {
            "numbers": numbers.reshape(-1).astype(int),
            "positions": positions,
            "energies": energies,
            "forces": forces,
            "unit": ENERGY_UNITS.get(unit, ENERGY_UNITS["kcal/mol"]),
            "index": index,
        }

    def count(self) -> int:
        return len(self._arrays["energies"])

    def read(self, indices: Sequence[int]) -> Iterator[Structure]:
        a = self._arrays
        for i in indices:
            yield Structure(
                numbers=a["numbers"],
                positions=np.asarray(a["positions"][i], dtype=float),
                cell=np.zeros((3, 3)),
                pbc=np.zeros(3, dtype=bool),
                energy=float(a["energies"][i]) * a["unit"],
                forces=np.asarray(a["forces"][i], dtype=float) * a["unit"],
                source=f"{self.name}:{i}",
            )

    def keys(self) -> list[Any]:
        """What tells the structures apart in other files of the set: the MD17 frame, or the positions."""
        a = self._arrays
        if a["index"] is not None and len(np.unique(a["index"])) == self.count():
            return [int(i) for i in a["index"]]
        return [np.round(p, 6).tobytes() for p in a["positions"]]
