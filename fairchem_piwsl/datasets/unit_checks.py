"""Do positions, forces and energies have the units that they are said to have?

Each is judged by the one before it:

* lengths: bonds are about as long as the sum of covalent radii;
* forces: the force constant of bonds to hydrogen is the same in every molecule, and without hydrogen the
  stiffness along the way between similar structures has an upper bound;
* energies: between similar structures they change by the work of the forces; all-electron total energies lie
  within a few percent of the sum of free-atom energies, in one unit only; total energies grow with the number of
  atoms.

What contradicts one of these clearly is refused, weaker signs are warnings, and what was found to fit, or could not
be judged, is said in a note.
"""

from dataclasses import dataclass, field

import numpy as np

from fairchem_piwsl.datasets.ase_labels import LabelOptions
from fairchem_piwsl.datasets.element_references import fit_references
from fairchem_piwsl.datasets.force_scales import Pairs, hydrogen_stretch, similar_pairs, torques
from fairchem_piwsl.datasets.records import Records
from fairchem_piwsl.datasets.total_energies import energies_of_electrons, grows_with_size
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled
from fairchem_piwsl.units import ENERGY_UNITS, LENGTH_UNITS, force_in_ev_per_angstrom

#: bonds over sums of covalent radii, right up to alkali metals and multiple bonds
_BOND_RATIO = (0.65, 1.5)
#: RMS force component above which the unit is doubted, eV/Angstrom
_LARGE_FORCES = 8.0
#: stiffness between similar structures, eV/Angstrom^2: that of the stiffest bonds (certain), and what is unusual
_STIFF, _UNUSUAL = 100.0, (0.5, 50.0)
#: stiffness of covalent bonds, eV/Angstrom^2, for a rough estimate of energies from forces
_COVALENT = 40.0
#: energy over work of right labels (0.9 to 1.15 in published sets)
_ENERGY_OVER_WORK = 1.4
_MIN_PAIRS = 9
#: part of the pairs in which energy and work have opposite signs, as in noise
_NOISE = 0.35
#: torque on a molecule in parts of what its forces could have; below 0.003 in published sets, 0.25 and more where
#: positions are turned against the forces
_TORQUE = 0.1


@dataclass
class Findings:
    """What the checks found, as sentences without a full stop."""

    remedy: str  # of what is wrong, beside a correction of the file
    wrong: list[str] = field(default_factory=list)  # certain
    doubts: list[str] = field(default_factory=list)
    fits: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)


def check_units(
    splits: dict[str, Records], labels: LabelOptions, trust: bool, remedy: str
) -> tuple[list[str], list[str]]:
    """Warnings and notes on the units of a data set; refuses what cannot be (unless `trust`).

    Args:
        splits: labels as converted to eV and Angstrom.
        labels: the units that they were said to have.
        trust: turn refusals into warnings.
        remedy: how the right units are given.
    """
    findings = Findings(remedy)
    samples = [sample for records in splits.values() for sample in records.samples]
    train = splits["train"]
    _lengths(np.concatenate([records.bond_ratio for records in splits.values()]), labels, findings)
    if not findings.wrong:  # every other sign is in these lengths
        _forces_and_energies(train, samples, labels, findings)
    if findings.wrong and not trust:
        raise UserError(
            f"The labels do not fit {labels.units} (forces in {labels.of_forces}, lengths in {labels.length_units}): "
            f"{'; '.join(findings.wrong)}. {findings.remedy}, or correct the file (--trust-units keeps them)."
        )
    notes = []
    if findings.fits:
        notes.append(f"Units: {'; '.join(findings.fits)}.")
    if findings.untold:
        notes.append(f"Not told by the labels: {'; '.join(findings.untold)}.")
    doubts = [*findings.wrong, *findings.doubts]
    return [text[0].upper() + text[1:] + ("" if text.endswith("?") else ".") for text in doubts], notes


def _lengths(ratios: np.ndarray, labels: LabelOptions, findings: Findings) -> None:
    ratios = ratios[np.isfinite(ratios)]
    if not len(ratios):
        findings.untold.append("the unit of the positions (no bonds)")
        return
    ratio = float(np.median(ratios))
    text = f"bonds are {ratio:.2f} times the sum of covalent radii"
    if _BOND_RATIO[0] < ratio < _BOND_RATIO[1]:
        findings.fits.append(text)
        return
    looks = _like(
        {name: size / LENGTH_UNITS[labels.length_units] for name, size in LENGTH_UNITS.items()}, 1.05 / ratio
    )
    findings.wrong.append(f"{text}, so the positions are not in {labels.length_units}{looks}")


def _forces_and_energies(
    train: Records, samples: list[Labelled], labels: LabelOptions, findings: Findings
) -> None:
    pairs = similar_pairs(samples)
    if train.force_components.any():
        _forces(train, samples, pairs, labels, findings)
    judged = (
        train.force_components.any() and not findings.wrong
    )  # else energies have nothing to be held against
    fits_forces = _work(pairs, labels, findings) if judged else None
    flat = fits_forces is None and _small_spread(train)
    electrons, certain = energies_of_electrons(
        train, labels.units, _LARGE_FORCES, False if flat else fits_forces
    )
    (findings.wrong if certain else findings.doubts).extend(filter(None, [electrons]))
    findings.wrong.extend(filter(None, [grows_with_size(train)]))
    if flat and not findings.wrong:
        findings.doubts.append(
            f"the energies vary little for such forces: are they per atom, or in another unit than {labels.units}?"
        )


def _forces(
    train: Records, samples: list[Labelled], pairs: Pairs, labels: LabelOptions, findings: Findings
) -> None:
    if train.force_rms < 1e-6:
        findings.doubts.append("all forces are zero")
        return
    turns = torques(samples)
    if len(turns) >= _MIN_PAIRS and np.median(turns) > _TORQUE:
        findings.wrong.append(
            "the forces turn the molecules, so positions and forces differ in orientation (Gaussian's standard one, "
            "for example) or in the order of the atoms"
        )
        findings.remedy = "Give both as they stand in one calculation"
        return
    stretch = hydrogen_stretch(samples)
    if stretch is not None:
        text = f"the force constant of {stretch.bonds} {stretch.bond} bonds is {stretch.constant:.3g} eV/Angstrom^2"
        if stretch.constant < 0:
            findings.wrong.append(
                f"the forces point uphill (they are gradients: turn their sign), since {text}"
            )
        elif 1 / stretch.tolerance < stretch.ratio < stretch.tolerance:
            findings.fits.append(text)
        else:
            expected = stretch.constant / stretch.ratio
            findings.wrong.append(
                f"{text} where about {expected:.0f} is right, so the forces are not in {labels.of_forces}"
                f"{_like_force(labels, 1 / stretch.ratio)}"
            )
        return
    stiffness = float(np.median(pairs.stiffness)) if len(pairs.stiffness) >= _MIN_PAIRS else np.nan
    # molecules may be rigid and only move against each other; without hydrogen that is no molecule
    soft = stiffness < _UNUSUAL[0] and not train.composition[:, 1].any()
    text = f"the stiffness between similar structures is {stiffness:.3g} eV/Angstrom^2"
    if stiffness > _STIFF:
        findings.wrong.append(
            f"{text} where {_STIFF:.0f} is beyond the stiffest bonds, so the forces are not in {labels.of_forces}"
            f"{_like_force(labels, 8 / stiffness, within=2.5)}"
        )
    elif soft or stiffness > _UNUSUAL[1] or train.force_rms > _LARGE_FORCES:
        shown = f"{text}; " if np.isfinite(stiffness) else ""
        findings.doubts.append(
            f"{shown}the RMS force component of {train.force_rms:.3g} eV/Angstrom is unusual: are the forces in "
            f"{labels.of_forces}?"
        )
    elif np.isfinite(stiffness):
        findings.fits.append(text)
    else:
        findings.untold.append(
            "the unit of the forces (too few bonds to hydrogen and too few similar structures)"
        )


def _work(pairs: Pairs, labels: LabelOptions, findings: Findings) -> bool | None:
    """Do energies change by the work of the forces? None where it cannot be told.

    The median of |energy / work| has an interval of three standard errors, which order statistics give; where the
    signs of energy and work do not agree by as much, labels are noise or the structures too far apart.
    """
    ratios = pairs.energy_over_work
    n = len(ratios)
    if n < _MIN_PAIRS:
        findings.untold.append(f"whether energies fit the forces ({n} pairs of similar structures, too few)")
        return None
    width = 1.5 / np.sqrt(n)
    uphill = float(np.mean(ratios < 0))
    low, size, high = np.quantile(np.abs(ratios), [max(0.5 - width, 0), 0.5, min(0.5 + width, 1)])
    text = f"energies change {size:.3g} times as much as the work of the forces"
    sure = f" ({n} pairs of similar structures, {low:.2g} to {high:.2g})"
    bound = _ENERGY_OVER_WORK
    off = size > bound or size < 1 / bound
    certain = abs(uphill - 0.5) > width
    if off and certain and (low > np.sqrt(bound) or high < 1 / np.sqrt(bound)):
        per_atom = "they are per atom or " if size < 1 else ""
        scale = {name: unit / ENERGY_UNITS[labels.units] for name, unit in ENERGY_UNITS.items()}
        findings.wrong.append(
            f"{text}, so {per_atom}the two differ in unit{sure}{_like(scale, 1 / size, 'energies in ')}"
        )
        return False
    if certain and uphill > 0.5:
        if not any("uphill" in known for known in findings.wrong):
            findings.wrong.append("the forces point uphill (they are gradients: turn their sign)")
        return False
    if off or (not certain and uphill > _NOISE and n >= 2 * _MIN_PAIRS):
        findings.doubts.append(
            f"{text}{sure}: energies and forces differ in unit or do not belong together, or the structures are too "
            f"far apart"
        )
        return None
    if not certain:
        findings.untold.append(f"whether energies fit the forces{sure}")
        return None
    findings.fits.append(text + sure)
    return True


def _like_force(labels: LabelOptions, factor: float, within: float = 1.3) -> str:
    declared = force_in_ev_per_angstrom(labels.of_forces)
    sizes = {
        f"{energy}/{length}": ENERGY_UNITS[energy] / LENGTH_UNITS[length] / declared
        for energy in ENERGY_UNITS
        for length in ("Angstrom", "Bohr")
    }
    return _like(sizes, factor, within=within)


def _like(sizes: dict[str, float], factor: float, what: str = "", within: float = 1.3) -> str:
    """`; they look like A or B` for the units of a table that are `factor` times what was declared."""
    near = sorted((abs(np.log(size / factor)), name) for name, size in sizes.items() if abs(size - 1) > 1e-6)
    names = [name for distance, name in near if distance < np.log(within)][:2]
    return f"; they look like {what}{' or '.join(names)}" if names else ""


def _small_spread(train: Records) -> bool:
    """Are energies much more alike than structures with such forces can be?

    In a harmonic system of stiffness k the energies spread by about sum(F^2) / (2 k) * sqrt(2 / 3N). Energies
    per atom, or energies in a unit smaller than that of the forces, fall far below.
    """
    usable = np.isfinite(train.energy) & (train.force_components == 3 * train.natoms)
    if usable.sum() < 20:
        return False
    energy = train.energy[usable]
    residual = energy - train.composition[usable] @ fit_references(train.composition[usable], energy)
    expected = train.force_squares[usable] / (2 * _COVALENT) * np.sqrt(2 / (3 * train.natoms[usable]))
    return bool(residual.std() < 0.1 * np.mean(expected))
