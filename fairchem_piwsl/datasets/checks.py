"""Checks of single structures and of duplicates: what makes a data set unusable is refused."""

import numpy as np
from ase.data import chemical_symbols
from scipy.spatial import cKDTree

from fairchem_piwsl.datasets.records import FINGERPRINT_TOLERANCE, Records
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled

#: atoms nearer than this sit on top of each other, Angstrom (the bond of H2 is 0.74)
MIN_DISTANCE = 0.2
#: below this a structure is reported, Angstrom
SHORT_DISTANCE = 0.5
#: without a pair of atoms this near nothing interacts, Angstrom
INTERACTING = 5.0
#: float32 keeps 1e-3 Angstrom up to here
MAX_POSITION = 1e4
#: energies that differ by more are not the same, eV
SAME_ENERGY = 1e-3


def check_structure(structure: Labelled) -> None:
    """Refuse a structure that cannot be a configuration of atoms."""
    where, atoms = structure.source, structure.atoms
    if len(atoms) == 0:
        raise UserError(f"{where} has no atoms; leave it out.")
    if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell.array).all():
        raise UserError(f"{where} has positions or cell vectors that are no finite numbers; leave it out.")
    if np.abs(atoms.positions).max() > MAX_POSITION:
        raise UserError(
            f"{where} has an atom at {np.abs(atoms.positions).max():.3g} Angstrom, where single precision loses "
            f"the digits; move it near the origin or leave it out."
        )
    if not (atoms.numbers > 0).all() or atoms.numbers.max() >= len(chemical_symbols):
        raise UserError(f"{where} has atoms of no known element; give each a chemical symbol.")
    open_cell = not atoms.cell.array[atoms.pbc].any(axis=1).all()
    if atoms.pbc.any() and (open_cell or abs(np.linalg.det(atoms.cell.complete().array)) < 1e-6):
        raise UserError(f"{where} is periodic but its cell has no volume; set the cell, or pbc to F F F.")


def check_labels(structure: Labelled, energy: bool = True, forces: bool = True) -> None:
    """Refuse infinite labels and, where `energy` or `forces` are needed, missing ones."""
    where, remedy = structure.source, ", or ".join(filter(None, [structure.hint, "--allow-missing"]))
    if np.isinf(structure.energy) or np.isinf(structure.forces).any():
        raise UserError(f"{where} has an infinite label; leave this structure out.")
    if energy and np.isnan(structure.energy):
        raise UserError(f"{where} has no energy, or NaN; leave it out or give the label ({remedy}).")
    missing = int(np.isnan(structure.forces).any(axis=1).sum())
    if forces and missing:
        what = "no forces, or NaN" if missing == len(structure) else f"NaN forces on {missing} atoms"
        raise UserError(
            f"{where} has {what}; leave it out or give the labels ({remedy}; --no-forces for energies alone)."
        )


def check_any_label(train: Records) -> None:
    """Refuse a training set without any label."""
    if not np.isfinite(train.energy).any() and not train.force_components.any():
        hint = train.samples[0].hint or "give the names that they have by --energy-key and --forces-key"
        raise UserError(f"No structure for training has an energy or forces: {hint}.")


def check_distance(shortest: float, where: str) -> None:
    """Refuse atoms on top of each other, and structures without neighbours."""
    if shortest < MIN_DISTANCE:
        raise UserError(
            f"{where} has two atoms {shortest:.3f} Angstrom apart; leave it out, or convert "
            f"positions that are not in Angstrom (--length-units)."
        )
    if shortest > INTERACTING:
        raise UserError(
            f"{where} has no two atoms within {INTERACTING:g} Angstrom, so that a model has nothing to compute; leave "
            f"it out (energies of free atoms may be given by --reference-file)."
        )


def duplicates(splits: dict[str, Records], keeps_states: bool) -> list[tuple[str, str, str, str]]:
    """Pairs (split, structure, split, structure) that are one structure by composition and fingerprint.

    Charge and spin count where the data set keeps them. Of many copies each is paired with the first alone.
    """
    owner = [name for name, records in splits.items() for _ in records.source]
    source = [s for records in splits.values() for s in records.source]
    prints = np.concatenate([records.fingerprint for records in splits.values()])
    atoms = np.concatenate([records.composition for records in splits.values()])
    _, kind = np.unique(atoms, axis=0, return_inverse=True)
    states = keeps_states * np.concatenate([records.states for records in splits.values()])
    # differences are relative, and absolute below 1e-3; away from 0, where scipy's tree recurses for ever once
    # a training in this process has turned denormal numbers off
    points = 1 + np.column_stack([np.arcsinh(1e3 * prints), kind.ravel(), states - states.min(axis=0)])
    # the tree lists all pairs of near points, so that of many copies it is shown one
    cells, index = np.round(points / FINGERPRINT_TOLERANCE), np.arange(len(points))
    _, shown, cell = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    copies = np.column_stack([shown[cell.ravel()], index])[shown[cell.ravel()] != index]
    near = cKDTree(points[shown]).query_pairs(FINGERPRINT_TOLERANCE, p=np.inf, output_type="ndarray")
    pairs = np.concatenate([copies, np.sort(shown[near], axis=1)])
    return [(owner[i], source[i], owner[j], source[j]) for i, j in pairs[np.lexsort(pairs.T[::-1])]]


def check_duplicates(splits: dict[str, Records], allow: bool, keeps_states: bool) -> list[str]:
    """Refuse structures that two splits share, unless allowed; warn of those within a split."""
    pairs = duplicates(splits, keeps_states)
    across = [p for p in pairs if p[0] != p[2]]
    within = [p for p in pairs if p[0] == p[2]]
    warnings = []
    if across:
        a, first, b, second = across[0]
        text = f"{_count(len(across), 'duplicate')} across splits: {first} in {a} is {second} in {b}"
        if not allow:
            raise UserError(f"{text}; remove them from the files, or pass --allow-duplicates to keep them.")
        warnings.append(f"{text}.")
    if within:
        a, first, _, second = within[0]
        warnings.append(
            f"{_count(len(within), 'duplicate')} within a split: {first} is {second}, both in {a}."
        )
    return warnings


def report(splits: dict[str, Records], keeps_states: bool, without_forces: bool) -> list[str]:
    """Warnings on what is unusual but may be meant."""
    warnings = []
    states = np.concatenate([records.states for records in splits.values()])
    if not keeps_states and np.ptp(states, axis=0).any():
        warnings.append(
            "Charge or spin differ between structures and are not written, since fairchem 1.10 knows neither "
            "(--format aselmdb keeps them)."
        )
    apart = np.concatenate(
        [np.abs(r.free_energy - r.energy)[r.force_components > 0] for r in splits.values()]
    )
    if (wrong := apart[apart > SAME_ENERGY]).size:
        warnings.append(
            f"energy and free_energy differ by up to {wrong.max():.2g} eV in {_count(wrong.size, 'structure')}; forces (of "
            "VASP, for instance) are derivatives of the free energy, which --energy-key free_energy takes."
        )
    known = splits["train"].composition.any(axis=0)
    for name, records in splits.items():
        new = np.flatnonzero(records.composition.any(axis=0) & ~known)
        if len(new):
            symbols = ", ".join(chemical_symbols[z] for z in new)
            warnings.append(f"{symbols} in {name} but not in train: a model cannot know these elements.")
        if records.shortest.min() < SHORT_DISTANCE:
            at = int(records.shortest.argmin())
            warnings.append(
                f"{records.source[at]} in {name} has atoms {records.shortest[at]:.2f} Angstrom apart."
            )
        no_energy = int(np.isnan(records.energy).sum())
        no_forces = int((records.force_components < 3 * records.natoms).sum())
        if no_energy:
            warnings.append(f"{no_energy} of {len(records)} structures in {name} have no energy.")
        if no_forces and not without_forces:
            warnings.append(
                f"{no_forces} of {len(records)} structures in {name} lack forces, or some of them."
            )
        net = records.net_force[np.isfinite(records.net_force)]
        scale = records.force_rms * np.sqrt(records.natoms.mean())
        if len(net) and np.median(net) > 0.03 * scale > 0:
            warnings.append(f"Forces in {name} do not sum to zero (median {np.median(net):.2f} eV/Angstrom).")
    return warnings


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
