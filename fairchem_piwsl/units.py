"""Energy units by the names that people write."""

from __future__ import annotations

from ase import units

from fairchem_piwsl.errors import UserError

#: size of one unit in eV
ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "Hartree": units.Hartree,
    "Rydberg": units.Rydberg,
}
ALIASES = {"ha": "Hartree", "hartrees": "Hartree", "ry": "Rydberg", "kcal": "kcal/mol", "kj": "kJ/mol"}

#: 1 kcal/mol in eV, as written into configs: networks then train in kcal/mol
KCAL_PER_MOL = 0.0433641


def unit_name(name: str) -> str:
    """The spelling used here of an energy unit, whatever its case or alias."""
    lower = name.strip().lower()
    for known in ENERGY_UNITS:
        if known.lower() == lower:
            return known
    if lower in ALIASES:
        return ALIASES[lower]
    raise UserError(f"--units {name} is not known: give one of {', '.join(ENERGY_UNITS)}.")


def unit_in_ev(name: str) -> float:
    """Size of an energy unit in eV."""
    return ENERGY_UNITS[unit_name(name)]
