"""`piwsl consistency`: do predicted forces belong to the predicted energy?

All functions take anything with `predict(structures, batch_size)` and work by finite differences, so they
judge models with direct forces, with gradient forces, and with edge frames that automatic differentiation
cannot follow. Units: eV, Angstrom.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms

from fairchem_piwsl import losses
from fairchem_piwsl.analysis.potential import Predictions
from fairchem_piwsl.structures import as_molecule, is_isolated

# Points of the fourth-order central difference, in steps.
STENCIL = (-2, -1, 1, 2)
# Differences over one and two steps further apart than this, relative to the median size, tell of a jump between.
SMOOTH = 1e-3


class Predictor(Protocol):
    """What is needed of a model."""

    def predict(self, structures: Sequence[Atoms], batch_size: int = 16) -> Predictions:
        """Energies and forces of `structures`."""


def moved(atoms: Atoms, displacement: np.ndarray) -> Atoms:
    """A copy with `displacement` [n_atoms, 3] added to the positions."""
    copy = atoms.copy()
    copy.set_constraint()
    copy.positions += displacement
    return copy


def unit_directions(atoms: Atoms, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` directions [count, n_atoms, 3], uniform on the sphere in 3n dimensions."""
    directions = random.normal(size=(count, len(atoms), 3))
    return directions / np.linalg.norm(directions, axis=(1, 2), keepdims=True)


def taylor_residuals(
    potential: Predictor,
    structures: Sequence[Atoms],
    magnitudes: np.ndarray,
    random: np.random.Generator,
    batch_size: int = 16,
) -> dict[str, np.ndarray]:
    """Residuals T - E_C of PITC (Eq. 3) and PISC (Eq. 4) with k = 0 and k = 1/2, each [M, S] in eV.

    `magnitudes` [M] are the root mean square displacements of an atom in Angstrom. Each structure keeps its
    two random directions (dr for C, dr' for B) for all magnitudes: curves show the order of the error.
    """
    at_a = potential.predict(structures, batch_size)
    pairs = [unit_directions(atoms, 2, random) * np.sqrt(len(atoms)) for atoms in structures]
    structure = torch.repeat_interleave(torch.arange(len(pairs)), torch.tensor([len(a) for a in structures]))
    rows: dict[str, list[np.ndarray]] = {}
    for magnitude in magnitudes:
        steps = [magnitude * pair for pair in pairs]
        displaced = [list(map(moved, structures, [step[j] for step in steps])) for j in (0, 1)]
        at_c, at_b = (potential.predict(copies, batch_size) for copies in displaced)
        dr, dr_prime = (torch.as_tensor(np.concatenate([step[j] for step in steps])) for j in (0, 1))
        for name, start, leg in (("pitc", at_a, dr), ("pisc", at_b, dr - dr_prime)):
            for k in (0.0, 0.5):
                residual = losses.leg_residual(_tensors(start), _tensors(at_c), leg, structure, k)
                rows.setdefault(f"{name}_k{k:g}", []).append(residual.numpy())
    return {key: np.array(values) for key, values in rows.items()}


def _tensors(prediction: Predictions) -> losses.Prediction:
    """The structures of a prediction as one batch in float64."""
    forces = torch.as_tensor(np.concatenate(prediction.forces), dtype=torch.float64)
    return losses.Prediction(torch.as_tensor(prediction.energy, dtype=torch.float64), forces)


def fitted_slope(magnitudes: np.ndarray, residuals: np.ndarray) -> float:
    """Slope of log(residual) over log(magnitude) by least squares; NaN where a residual is zero."""
    if len(magnitudes) < 2 or not np.all(residuals > 0):
        return float("nan")
    return float(np.polyfit(np.log(magnitudes), np.log(residuals), 1)[0])


def directional_derivatives(
    potential: Predictor,
    structures: Sequence[Atoms],
    count: int,
    step: float,
    random: np.random.Generator,
    batch_size: int = 16,
    refinements: int = 0,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Force along `count` random unit directions of each structure: predicted, and -dE/du; each [S, count].

    With directions uniform on the sphere in 3n dimensions, the root mean square of the difference estimates
    the root mean square error of a force component. Last, the share of directions with a jump of the energy
    within two steps.
    """
    forces = potential.predict(structures, batch_size).forces
    directions = [unit_directions(atoms, count, random) for atoms in structures]
    predicted = [(u * force).sum(axis=(1, 2)) for u, force in zip(directions, forces, strict=True)]
    gradient, jumps = central_differences(
        lambda points: potential.predict(points, batch_size).energy[:, None],
        [(atoms, u) for atoms, group in zip(structures, directions, strict=True) for u in group],
        step,
        refinements,
    )
    return np.array(predicted), -gradient.reshape(len(structures), count), jumps


def force_jacobian(
    potential: Predictor, atoms: Atoms, step: float, batch_size: int = 16, refinements: int = 0
) -> np.ndarray:
    """J[a, b] = dF_a / dr_b in eV/Angstrom^2, [3n, 3n], by fourth-order central differences."""
    size = 3 * len(atoms)
    axes = np.eye(size).reshape(size, len(atoms), 3)
    rows, _ = central_differences(
        lambda points: np.array([force.ravel() for force in potential.predict(points, batch_size).forces]),
        [(atoms, axis) for axis in axes],
        step,
        refinements,
    )
    return rows.T


def central_differences(
    values: Callable[[list[Atoms]], np.ndarray],
    places: Sequence[tuple[Atoms, np.ndarray]],
    step: float,
    refinements: int = 0,
) -> tuple[np.ndarray, float]:
    """Derivatives [P, V] of `values` ([points, V]) at `places` (structure, direction), to fourth order.

    Many models jump where a pair passes their cutoff, and a step across a jump gives a derivative as large as
    the step is small. Where differences over one and two steps disagree, the place is repeated with a tenth of
    the step, up to `refinements` times. Also the share of places that disagreed at first.
    """
    todo = np.arange(len(places))
    result, share, scale = np.zeros(0), 0.0, 0.0
    for attempt in range(refinements + 1):
        points = [moved(places[i][0], p * step * places[i][1]) for i in todo for p in STENCIL]
        at = values(points).reshape(len(todo), len(STENCIL), -1)
        narrow, wide = (at[:, 2] - at[:, 1]) / (2 * step), (at[:, 3] - at[:, 0]) / (4 * step)
        if attempt == 0:
            result = np.empty_like(narrow)
            scale = float(np.median(np.linalg.norm(narrow, axis=1)))
        result[todo] = (4 * narrow - wide) / 3
        rough = np.linalg.norm(narrow - wide, axis=1) > SMOOTH * scale
        share = float(rough.mean()) if attempt == 0 else share
        todo, step = todo[rough], step / 10
        if not len(todo):
            break
    return result, share


def curl_measures(jacobian: np.ndarray) -> tuple[np.ndarray, float]:
    """Curl of each atom's force with respect to its own position, [n] in eV/Angstrom^2, and the asymmetry.

    The curl of atom i is |nabla_i x F_i|. The asymmetry |J - J^T| / |J + J^T| (Frobenius norms) also sees
    pairs of atoms; it is 0 if and only if the force field is a gradient to first order around the structure.
    """
    n_atoms = len(jacobian) // 3
    blocks = jacobian.reshape(n_atoms, 3, n_atoms, 3)[np.arange(n_atoms), :, np.arange(n_atoms), :]
    curl = blocks[:, [2, 0, 1], [1, 2, 0]] - blocks[:, [1, 2, 0], [2, 0, 1]]
    symmetric = np.linalg.norm(jacobian + jacobian.T)
    asymmetry = np.linalg.norm(jacobian - jacobian.T) / symmetric if symmetric > 0 else float("nan")
    return np.linalg.norm(curl, axis=1), float(asymmetry)


def net_force_and_torque(structures: Sequence[Atoms], forces: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """Size of the total force (eV/Angstrom) and of the torque about the centroid (eV) of isolated molecules.

    Both vanish exactly for an energy that does not change with translation and rotation. None where no
    structure is isolated.
    """
    totals, torques = [], []
    for atoms, force in zip(structures, forces, strict=True):
        if is_isolated(atoms):
            positions = as_molecule(atoms).positions
            totals.append(np.linalg.norm(force.sum(axis=0)))
            torques.append(np.linalg.norm(np.cross(positions - positions.mean(axis=0), force).sum(axis=0)))
    if not totals:
        return None
    return {
        "molecules": len(totals),
        "force_rms": root_mean_square(totals),
        "force_max": float(max(totals)),
        "torque_rms": root_mean_square(torques),
        "torque_max": float(max(torques)),
    }


def root_mean_square(values: Any, axis: int | None = None) -> Any:
    """Root mean square of `values`."""
    result = np.sqrt(np.mean(np.square(values), axis=axis))
    return result if axis is not None else float(result)
