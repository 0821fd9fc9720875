"""Find the labels on an ASE Atoms object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from fairchem_piwsl.datasets.structure import Structure, no_forces
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.units import unit_in_ev


@dataclass(frozen=True)
class LabelOptions:
    """Where the labels are and in which unit; forces are in `units` per Angstrom."""

    units: str = "eV"
    energy_key: str | None = None
    forces_key: str | None = None
    no_forces: bool = False  # leave the forces out


def to_structure(atoms: Atoms, source: str, options: LabelOptions) -> Structure:
    """Atoms with labels in `options.units` -> `Structure` in eV and eV/Angstrom.

    Forces are the raw ones, not projected on constraints, as upstream takes them.
    """
    factor = unit_in_ev(options.units)
    energy = _find(atoms, options.energy_key or "energy")
    forces = None if options.no_forces else _find(atoms, options.forces_key or "forces")
    hint = ""
    if energy is None or (forces is None and not options.no_forces):
        hint = _candidates(atoms)
    return Structure(
        numbers=atoms.get_atomic_numbers(),
        positions=atoms.get_positions(),
        cell=np.asarray(atoms.cell.array, dtype=float),
        pbc=np.array(atoms.pbc, dtype=bool),
        energy=np.nan if energy is None else _scalar(energy, source) * factor,
        forces=no_forces(len(atoms)) if forces is None else _vectors(forces, len(atoms), source) * factor,
        source=source,
        tags=atoms.get_tags(),
        fixed=_fixed(atoms),
        hint=hint,
    )


def _find(atoms: Atoms, key: str) -> Any:
    """The value under `key`: from the file's own fields first, then from its calculator results."""
    places: list[dict[str, Any]] = [atoms.info, atoms.arrays]
    places += [atoms.info[k] for k in ("key_value_pairs", "data") if isinstance(atoms.info.get(k), dict)]
    if atoms.calc is not None:
        places.append(getattr(atoms.calc, "results", {}))
    return next((place[key] for place in places if place.get(key) is not None), None)


def _candidates(atoms: Atoms) -> str:
    """Names of fields that may hold labels, for the error message."""
    scalars = dict(atoms.info)
    for inner in ("key_value_pairs", "data"):
        scalars.update(scalars.pop(inner, None) or {})
    energies = [k for k, v in scalars.items() if np.ndim(v) == 0 and isinstance(v, int | float | np.number)]
    forces = [
        k
        for k, v in atoms.arrays.items()
        if np.shape(v) == (len(atoms), 3) and k not in ("positions", "momenta")
    ]
    found = [f"--energy-key {k}" for k in energies if "en" in k.lower() or k.lower() in ("e", "u", "u0")]
    found += [f"--forces-key {k}" for k in forces]
    return f"perhaps {' '.join(found)}" if found else ""


def _scalar(value: Any, source: str) -> float:
    array = np.asarray(value, dtype=float)
    if array.size != 1:
        raise UserError(f"{source}: the energy has shape {array.shape}; give one number for each structure.")
    return float(array.reshape(()))


def _vectors(value: Any, n_atoms: int, source: str) -> np.ndarray:
    array = np.asarray(value, dtype=float)
    if array.shape != (n_atoms, 3):
        raise UserError(f"{source}: the forces have shape {array.shape} where ({n_atoms}, 3) is needed.")
    return array


def _fixed(atoms: Atoms) -> np.ndarray:
    """[N] 1 for atoms held by a `FixAtoms` constraint."""
    fixed = np.zeros(len(atoms), dtype=int)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = 1
    return fixed
