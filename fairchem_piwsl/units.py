"""The one unit table: sizes in eV and Angstrom of the units that people write.

YAML has no names, so that configs repeat `KCAL_PER_MOL` as the literal 0.0433641.
"""

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
#: size of one unit in Angstrom
LENGTH_UNITS = {"Angstrom": 1.0, "Bohr": units.Bohr, "nm": units.nm}
_ALIASES = {
    "ha": "Hartree", "hartrees": "Hartree", "eh": "Hartree", "ry": "Rydberg", "kcal": "kcal/mol", "kj": "kJ/mol",
    "a": "Angstrom", "ang": "Angstrom", "\u00e5": "Angstrom", "a0": "Bohr", "bohrs": "Bohr",
}  # fmt: skip

#: 1 kcal/mol in eV with the digits that configs hold: networks train in kcal/mol
KCAL_PER_MOL = 0.0433641


def kcal_in(unit: str) -> float:
    """One energy `unit` in kcal/mol."""
    return ENERGY_UNITS[unit] / ENERGY_UNITS["kcal/mol"]


def energy_unit(name: str, where: str = "--units") -> str:
    """The spelling used here of an energy unit, whatever its case or alias; `where` names it in the error."""
    return _known(name, ENERGY_UNITS, where)


def length_unit(name: str, where: str = "--length-units") -> str:
    """The spelling used here of a length unit."""
    return _known(name, LENGTH_UNITS, where)


def force_unit(name: str) -> str:
    """The spelling used here of a force unit, `<energy>/<length>`."""
    energy, _, length = name.rpartition("/")
    if not energy:
        raise UserError(f"--force-units {name} is no force: give energy and length, such as Hartree/Bohr.")
    return f"{energy_unit(energy, '--force-units')}/{length_unit(length, '--force-units')}"


def force_in_ev_per_angstrom(name: str) -> float:
    """Size of a force unit as `force_unit` spells it."""
    energy, _, length = name.rpartition("/")
    return ENERGY_UNITS[energy] / LENGTH_UNITS[length]


def _known(name: str, table: dict[str, float], where: str) -> str:
    lower = name.strip().lower()
    found = {known.lower(): known for known in table}.get(lower, _ALIASES.get(lower, ""))
    if found not in table:
        raise UserError(f"{where} {name} is not known: give one of {', '.join(table)}.")
    return found
