"""Do the energies and forces have the unit that they are said to have?

Three independent signs, each of which can stay silent:

* all-electron total energies lie within a few percent of the sum of free-atom energies, in one unit only, and
  no energy lies far below that sum;
* between two similar structures the energy changes by the work of the forces;
* energies of structures of several sizes grow with the number of atoms.

What contradicts one of these clearly is refused, weaker signs are warnings.
"""

from __future__ import annotations

import numpy as np

from fairchem_piwsl.datasets.element_references import fit_references
from fairchem_piwsl.datasets.pair_work import energy_over_work
from fairchem_piwsl.datasets.records import Records
from fairchem_piwsl.errors import UserError
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
#: part of the pairs in which energy and work have one sign, above which their ratio is trusted
_AGREEMENT = 0.75
#: RMS force component above which the unit is doubted, eV/Angstrom
_LARGE_FORCES = 8.0
#: stiffness of covalent bonds, eV/Angstrom^2, for a rough estimate of energies from forces
_STIFFNESS = 40.0


def check_units(train: Records, units: str, trust: bool = False) -> list[str]:
    """Warnings about energies and forces of the training split; refuses what cannot be (unless `trust`).

    Args:
        train: labels as converted to eV from `units`.
        units: the unit that the labels were said to have.
        trust: turn refusals into warnings.
    """
    certain, unsure = [], []
    work, is_certain = _work_of_forces(train, units)
    certain += [v for v in (_all_electron(train, units), _grows_with_size(train, units)) if v]
    if work and is_certain:
        certain.append(work)
    elif work:
        unsure.append(f"{work[0].upper()}{work[1:]}, or they do not belong together.")
    small = _small_spread(train)
    large = train.force_rms > _LARGE_FORCES
    if large and small:
        certain.append(
            f"the forces (RMS {train.force_rms:.1f} eV/Angstrom) are too large for the energies; "
            f"the labels look like kcal/mol or kJ/mol"
        )
    elif large:
        unsure.append(
            f"RMS force component {train.force_rms:.1f} eV/Angstrom is large: are the labels in {units}?"
        )
    elif small:
        unsure.append(
            f"The energies vary little for such forces: are they per atom, or in another unit than {units}?"
        )
    if train.force_components.any() and train.force_rms < 1e-6:
        unsure.append("All forces are zero.")
    if certain and not trust:
        raise UserError(
            f"The labels do not fit --units {units}: {'; '.join(certain)}. Give the right --units, or "
            f"correct the file (--trust-units keeps them)."
        )
    return [text[0].upper() + text[1:] + "." for text in certain] + unsure


def _all_electron(train: Records, units: str) -> str:
    """All-electron total energies tell their unit, and whether they are per atom."""
    heavy = train.composition[:, 5 : len(_FREE_ATOMS)] @ _FREE_ATOMS[5:]
    free = train.composition[:, : len(_FREE_ATOMS)] @ _FREE_ATOMS
    beyond = train.composition[:, len(_FREE_ATOMS) :].any(axis=1)
    usable = np.isfinite(train.energy) & ~beyond & (heavy < 0.9 * free)
    if usable.sum() < 0.9 * len(train) or not usable.any():
        return ""
    declared = ENERGY_UNITS[units]
    in_file = train.energy[usable] / declared  # as the file has it
    for per_atom in (False, True):
        ratio = in_file / free[usable] * (train.natoms[usable] if per_atom else 1)
        for unit, size in ENERGY_UNITS.items():
            scaled = ratio * size / ENERGY_UNITS["Hartree"]
            inside = (scaled > _ALL_ELECTRON[0]) & (scaled < _ALL_ELECTRON[1])
            if unit != units and train.force_rms / declared * size > _LARGE_FORCES:
                continue  # a coincidence: forces would be absurd in that unit
            multiple = train.natoms[usable].max() > 1
            if inside.mean() > 0.9 and (unit != units or (per_atom and multiple)):
                kind = f"per atom in {unit}" if per_atom and multiple else f"in {unit}"
                return f"the energies are all-electron energies {kind}, judged by the free atoms' energies"
            if inside.mean() > 0.9:
                return ""
    if np.median(train.energy[usable] / (free[usable] * ENERGY_UNITS["Hartree"])) > 1.1:
        return "the energies are lower than those of all electrons together, so the unit is smaller"
    return ""


def _work_of_forces(train: Records, units: str) -> tuple[str, bool]:
    """The energy between similar structures must change by the work of the forces; (verdict, is it certain).

    Another unit changes the size of the ratio but never its sign: where the signs do not agree either, the
    labels are noise or the structures too far apart, and nothing is certain.
    """
    ratios = energy_over_work(list(train.samples.values()))
    if len(ratios) < 10:
        return "", False
    uphill = np.mean(ratios < 0)
    certain = bool(max(uphill, 1 - uphill) >= _AGREEMENT)
    low, high = np.quantile(np.abs(ratios), [0.2, 0.8])
    size = float(np.exp(np.median(np.log(np.abs(ratios) + 1e-12))))
    if low > 4:
        verdict = (
            f"energies change {size:.3g} times as much as the work of the forces, so the two differ in unit"
        )
    elif high < 0.25:
        verdict = (
            f"energies change about {size:.2g} times as much as the work of the forces, so that they "
            f"are per atom or the two differ in unit"
        )
    elif certain and uphill > 0.5:
        verdict = "the forces point uphill (they are gradients: turn their sign)"
    else:
        verdict = ""
    return verdict, certain


def _grows_with_size(train: Records, units: str) -> str:
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


def _small_spread(train: Records) -> bool:
    """Are energies much more alike than structures with such forces can be?

    In a harmonic system of stiffness k the energies spread by about sum(F^2) / (2 k) * sqrt(2 / 3N). Energies
    per atom, or energies and forces in a unit smaller than eV that pass for eV, fall far below.
    """
    usable = np.isfinite(train.energy) & (train.force_components == 3 * train.natoms)
    if usable.sum() < 20:
        return False
    energy = train.energy[usable]
    residual = energy - train.composition[usable] @ fit_references(train.composition[usable], energy)
    expected = train.force_squares[usable] / (2 * _STIFFNESS) * np.sqrt(2 / (3 * train.natoms[usable]))
    return bool(residual.std() < 0.1 * np.mean(expected))
