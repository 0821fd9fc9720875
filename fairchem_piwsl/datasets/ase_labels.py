"""Find the labels on an ASE Atoms object."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import STATES, Labelled, no_forces
from fairchem_piwsl.units import ENERGY_UNITS, LENGTH_UNITS, force_in_ev_per_angstrom

#: name in `info` of the energy that a calculator calls free, whose derivatives forces are where electrons are smeared
FREE_ENERGY = "free_energy"
#: names that energies have in files, and names of vectors that are no forces
_ENERGY = re.compile(r"en|^(e|u|u0|e_?tot)$", re.IGNORECASE)
_NO_FORCES = ("positions", "momenta", "stress", "virial")


@dataclass(frozen=True)
class LabelOptions:
    """Where the labels are and in which units; the spellings are those of `fairchem_piwsl.units`."""

    units: str = "eV"
    energy_key: str | None = None
    forces_key: str | None = None
    no_forces: bool = False  # leave the forces out
    length_units: str = "Angstrom"  # of positions and cell
    force_units: str = ""  # empty: energy unit per length unit

    @property
    def of_forces(self) -> str:
        """The unit of the forces."""
        return self.force_units or f"{self.units}/{self.length_units}"


def to_structure(atoms: Atoms, source: str, options: LabelOptions) -> Labelled:
    """Atoms with labels in the units of `options` -> eV, eV/Angstrom and Angstrom.

    Forces are the raw ones, not projected on constraints, as upstream takes them. Charge and spin, where the file
    has them (`total_charge`, `total_spin` are the same), are in `info`, and so is the free energy, unless
    `energy_key` says which energy is meant.
    """
    length = LENGTH_UNITS[options.length_units]
    energy = _find(atoms, options.energy_key or "energy")
    forces = None if options.no_forces else _find(atoms, options.forces_key or "forces")
    hint = _candidates(atoms, energy is None, forces is None and not options.no_forces)
    energy = np.nan if energy is None else _scalar(energy, source) * ENERGY_UNITS[options.units]
    if forces is not None:
        forces = _vectors(forces, len(atoms), source) * force_in_ev_per_angstrom(options.of_forces)
    bare = atoms.copy()
    bare.calc = None
    for name in STATES:
        for key in (f"total_{name}", name):  # MACE's word, and the usual one, which goes before it
            value = _find_in([atoms.info, *_inner(atoms)], key)
            if value is not None:
                bare.info[name] = value
    free = None if options.energy_key else getattr(atoms.calc, "results", {}).get(FREE_ENERGY)
    if free is not None:
        bare.info[FREE_ENERGY] = _scalar(free, source) * ENERGY_UNITS[options.units]
    if length != 1:
        bare.set_cell(bare.cell.array * length)
        bare.positions *= length
    return Labelled(bare, energy, no_forces(len(atoms)) if forces is None else forces, source, hint)


def _find(atoms: Atoms, key: str) -> Any:
    """The value under `key`: from the file's own fields first, then from its calculator results."""
    results = getattr(atoms.calc, "results", {})
    return _find_in([atoms.info, atoms.arrays, *_inner(atoms), results], key)


def _inner(atoms: Atoms) -> list[dict[str, Any]]:
    """Where an ASE database keeps what is no property of a calculator."""
    return [atoms.info[k] for k in ("key_value_pairs", "data") if isinstance(atoms.info.get(k), dict)]


def _find_in(places: list[dict[str, Any]], key: str) -> Any:
    return next((place[key] for place in places if place.get(key) is not None), None)


def _candidates(atoms: Atoms, of_energy: bool, of_forces: bool) -> str:
    """Names of fields that may hold the labels that are missing, for the error message."""
    places = [getattr(atoms.calc, "results", {}), atoms.info, *_inner(atoms), atoms.arrays]
    fields = {k: v for place in places for k, v in place.items()}
    energies = [
        k
        for k, v in fields.items()
        if isinstance(v, int | float | np.number) and not isinstance(v, bool) and _ENERGY.search(str(k))
    ]
    forces = [k for k, v in fields.items() if isinstance(v, np.ndarray) and v.shape == (len(atoms), 3)]
    forces = [k for k in forces if k not in _NO_FORCES]
    found = [f"--energy-key {' or '.join(energies)}"] * bool(of_energy and energies)
    found += [f"--forces-key {' or '.join(forces)}"] * bool(of_forces and forces)
    return f"perhaps {' '.join(found)}" if found else ""


def _scalar(value: Any, source: str) -> float:
    array = _numbers(value, source, "energy")
    if array.size != 1:
        raise UserError(f"{source}: the energy has shape {array.shape}; give one number for each structure.")
    return float(array.reshape(()))


def _vectors(value: Any, n_atoms: int, source: str) -> np.ndarray:
    array = _numbers(value, source, "forces")
    if array.shape != (n_atoms, 3):
        raise UserError(
            f"{source}: the forces have shape {array.shape} where ({n_atoms}, 3) is needed; correct the file, or "
            f"name the right array by --forces-key."
        )
    return array


def _numbers(value: Any, source: str, what: str) -> np.ndarray:
    try:
        if np.asarray(value).dtype == bool:  # ASE's value of a word alone, such as `energy:` in files of xtb
            raise TypeError
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise UserError(f"{source}: the {what} {str(value)[:40]!r} is no number; correct the file.") from None
