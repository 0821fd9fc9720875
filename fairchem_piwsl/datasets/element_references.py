"""Element references and label scales, fitted on the training split, in files that upstream loads."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import check_output_file, whole_file

#: upstream indexes the references by atomic number, 0 to 118
N_ELEMENTS = 119


def composition(numbers: np.ndarray) -> np.ndarray:
    """[119] atoms of each element."""
    return np.bincount(numbers, minlength=N_ELEMENTS)


def fit_references(compositions: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """Energy of each element [119] in eV such that sums over atoms match total energies best.

    Least squares over structures with a label. Where compositions do not tell the elements apart (one
    molecule, or a fixed ratio), the solution of smallest norm is taken. Elements that never occur get 0.

    Args:
        compositions: [n, 119] atoms of each element.
        energies: [n] total energies in eV, NaN where there is no label.
    """
    references = np.zeros(N_ELEMENTS)
    labelled = np.isfinite(energies)
    present = compositions[labelled].any(axis=0)
    if present.any():
        counts = compositions[labelled][:, present].astype(float)
        references[present] = np.linalg.lstsq(counts, energies[labelled], rcond=None)[0]
    return references


def given_references(energies: Mapping[int, float], elements: np.ndarray) -> np.ndarray:
    """Energies of free atoms [119] in eV from atomic number -> energy; refuses if one of `elements` lacks."""
    missing = [chemical_symbols[z] for z in elements if z not in energies]
    if missing:
        raise UserError(
            f"--reference-file has no free atom of {', '.join(missing)}; add it, or leave the option out."
        )
    references = np.zeros(N_ELEMENTS)
    references[list(energies)] = list(energies.values())
    return references


def check_new(path: Path) -> None:
    """Refuse a file for references that is there or that numpy would call otherwise, before any work."""
    if path.exists() or path.suffix != ".npz":
        raise UserError(
            f"{path} {'is there already' if path.exists() else 'is no .npz'}; give the name of a new .npz file."
        )
    check_output_file(path, "the file for references")


def write_references(path: Path, references: np.ndarray) -> None:
    """`dataset.train.transforms.element_references.energy.file` for upstream, float64 [119]."""
    with whole_file(path) as file:
        np.savez(file, element_references=references)


def write_normalizer(path: Path, rmsd: float) -> None:
    """`dataset.train.transforms.normalizer.<target>.file` for upstream: mean 0 and the given scale."""
    np.savez(path, mean=0.0, rmsd=rmsd if np.isfinite(rmsd) and rmsd > 0 else 1.0)
