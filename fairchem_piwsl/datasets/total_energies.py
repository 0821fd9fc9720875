"""What total energies say about themselves: whether they are those of all electrons, and whether they are per atom."""

import numpy as np

from fairchem_piwsl.datasets.element_references import fit_references
from fairchem_piwsl.datasets.records import Records
from fairchem_piwsl.units import ENERGY_UNITS

#: Hartree-Fock energies of free atoms in Hartree, H to Kr
# fmt: off
_FREE_ATOMS = np.array([
    0, -0.5, -2.8617, -7.4327, -14.573, -24.529, -37.689, -54.401, -74.809, -99.409, -128.547, -161.859,
    -199.615, -241.877, -288.854, -340.719, -397.505, -459.482, -526.817, -599.165, -676.758, -759.736,
    -848.406, -942.884, -1043.356, -1149.866, -1262.444, -1381.415, -1506.871, -1638.963, -1777.848,
    -1923.261, -2075.360, -2234.239, -2399.868, -2572.441, -2752.055,
])
# fmt: on
#: total energy over the sum of free atoms, for all-electron methods
_ALL_ELECTRON = (0.98, 1.03)


def energies_of_electrons(
    train: Records, units: str, absurd_forces: float, fits_forces: bool | None
) -> tuple[str, bool]:
    """What contradicts `units`, or "", and whether it is certain.

    All-electron total energies tell their unit, and whether they are per atom.

    Args:
        train: labels as converted to eV from `units`.
        units: the unit that they were said to have.
        absurd_forces: RMS force component in eV/Angstrom above which a unit is a coincidence, if
        fits_forces: energies change by the work of the forces; None: not known, and assumed for a single
            composition, whose energy may be any number.
    """
    heavy = train.composition[:, 5 : len(_FREE_ATOMS)] @ _FREE_ATOMS[5:]
    free = train.composition[:, : len(_FREE_ATOMS)] @ _FREE_ATOMS
    beyond = train.composition[:, len(_FREE_ATOMS) :].any(axis=1)
    usable = np.isfinite(train.energy) & ~beyond & (heavy < 0.9 * free)
    if usable.sum() < 0.9 * len(train) or not usable.any():
        return "", True
    assumed = fits_forces is None and len(np.unique(train.composition[usable], axis=0)) == 1
    may_be_per_atom = fits_forces is not True and train.natoms[usable].max() > 1
    in_file = train.energy[usable] / ENERGY_UNITS[units] / free[usable]
    found: list[str] = []
    coincidences: list[str] = []
    for unit, size in ENERGY_UNITS.items():
        absurd = unit != units and train.force_rms / ENERGY_UNITS[units] * size > absurd_forces
        for per_atom in (False, True)[: 1 + int(may_be_per_atom)]:
            scaled = in_file * (train.natoms[usable] if per_atom else 1) * size / ENERGY_UNITS["Hartree"]
            if np.mean((scaled > _ALL_ELECTRON[0]) & (scaled < _ALL_ELECTRON[1])) > 0.9:
                if unit == units and not per_atom:
                    return "", True
                kind = f"per atom in {unit}" if per_atom else f"in {unit}"
                (coincidences if absurd and (fits_forces or assumed) else found).append(kind)
    if found:
        alone = assumed and not train.force_components.any()
        certain = not alone or any("per atom" not in kind for kind in found)
        kinds = " or ".join([*found, *coincidences])
        verb = "are" if certain else "may be"
        return (
            f"the energies {verb} all-electron energies {kinds}, judged by the free atoms' energies",
            certain,
        )
    if np.median(train.energy[usable] / (free[usable] * ENERGY_UNITS["Hartree"])) > 1.1:
        return "the energies are lower than those of all electrons together, so the unit is smaller", True
    return "", True


def grows_with_size(train: Records) -> str:
    """Total energies grow with the number of atoms, energies per atom depend on the composition alone."""
    labelled = np.isfinite(train.energy)
    n, energy = train.natoms[labelled], train.energy[labelled]
    counts = train.composition[labelled]
    elements = counts.any(axis=0).sum()
    if len(n) < 5 * max(elements, 2) or n.std() < 0.1 * n.mean() or energy.std() == 0:
        return ""
    total = energy - counts @ fit_references(counts, energy)
    per_atom = energy - (counts / n[:, None]) @ fit_references(counts / n[:, None], energy)
    if per_atom.std() < 0.2 * total.std():
        return "the energies do not grow with the number of atoms, so they look per atom (multiply by it)"
    return ""
