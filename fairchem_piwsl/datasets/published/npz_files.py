"""rMD17 and sGDML (MD22, MD17-CCSD(T)) files: many configurations of one molecule in an npz."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from fairchem_piwsl.datasets.ase_files import broken
from fairchem_piwsl.datasets.ase_labels import LabelOptions
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled
from fairchem_piwsl.units import ENERGY_UNITS, LENGTH_UNITS, energy_unit, length_unit

#: names of atomic numbers, positions, energies and forces: rMD17, sGDML
_LAYOUTS = (("nuclear_charges", "coords", "energies", "forces"), ("z", "R", "E", "F"))


class NpzSource:
    """One npz file, in kcal/mol and Angstrom unless it says `e_unit` and `r_unit` of its own.

    Forces are in the energy unit per length unit. Arrays of Python objects are refused: they are pickles, which
    may execute anything.
    """

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        self.paths = [path]

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        """Arrays numbers [N], positions and forces [n, N, 3], energies [n], in the file's units."""
        with broken(self.path), np.load(self.path, allow_pickle=False) as file:
            names = set(file.files)
            layout = next((keys for keys in _LAYOUTS if names.issuperset(keys)), None)
            if layout is None:
                raise UserError(
                    f"{self.path} has the arrays {', '.join(sorted(names))} but not {' '.join(_LAYOUTS[0])} "
                    f"or {' '.join(_LAYOUTS[1])}; give a file as published."
                )
            numbers, positions, energies, forces = (_plain(self.path, file, key, "iuf") for key in layout)
            energy = energy_unit(self._text(file, "e_unit", "kcal/mol"), f"{self.path}: e_unit")
            length = length_unit(self._text(file, "r_unit", "Angstrom"), f"{self.path}: r_unit")
            index = _plain(self.path, file, "old_indices", "iu") if "old_indices" in names else None
        energies = energies.reshape(len(positions)) if energies.size == len(positions) else energies
        if positions.ndim != 3 or forces.shape != positions.shape or energies.shape != positions.shape[:1]:
            raise UserError(
                f"{self.path} has positions {positions.shape}, energies {energies.shape} and forces "
                f"{forces.shape}, which do not belong together; give a file as published."
            )
        if numbers.reshape(-1).shape != positions.shape[1:2] or not (numbers == numbers.astype(int)).all():
            raise UserError(
                f"{self.path} has {numbers.size} atomic numbers for {positions.shape[1]} atoms, or some that are no "
                f"whole numbers; give a file as published."
            )
        return {
            "numbers": numbers.reshape(-1).astype(int),
            "positions": positions,
            "energies": energies,
            "forces": forces,
            "energy": ENERGY_UNITS[energy],
            "length": LENGTH_UNITS[length],
            "labels": LabelOptions(energy, length_units=length),
            "index": index,
        }

    def _text(self, file: Any, key: str, default: str) -> str:
        return str(_plain(self.path, file, key, "SU").astype(str)) if key in file.files else default

    @property
    def labels(self) -> LabelOptions:
        """The units of the file."""
        return self._arrays["labels"]

    def count(self) -> int:
        return len(self._arrays["energies"])

    def read(self, indices: Sequence[int]) -> Iterator[Labelled]:
        a = self._arrays
        for i in indices:
            yield Labelled(
                Atoms(a["numbers"], np.asarray(a["positions"][i], dtype=float) * a["length"]),
                float(a["energies"][i]) * a["energy"],
                np.asarray(a["forces"][i], dtype=float) * (a["energy"] / a["length"]),
                f"{self.name}:{i}",
            )

    def keys(self) -> list[Any]:
        """What tells the structures apart in other files of the set: the MD17 frame, or the positions."""
        a = self._arrays
        if a["index"] is not None and len(np.unique(a["index"])) == self.count():
            return [int(i) for i in a["index"]]
        return [np.round(p, 6).tobytes() for p in a["positions"]]


def _plain(path: Path, file: Any, key: str, kinds: str) -> np.ndarray:
    """An array of the file whose type is one of numpy's `kinds`."""
    try:
        array = np.asarray(file[key])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise UserError(
            f"{path}: the array {key} holds pickled Python objects, which are not read since they may execute "
            f"anything; save it as an array of numbers."
        ) from None
    if array.dtype.kind not in kinds:
        what = "numbers" if "f" in kinds else "text"
        raise UserError(f"{path}: the array {key} holds no {what} ({array.dtype}); give a file as published.")
    return array
