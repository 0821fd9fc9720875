"""The report behind `piwsl consistency`: all measures on a sample of a data set, and their plot."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_piwsl.analysis import consistency as measures
from fairchem_piwsl.analysis import figures
from fairchem_piwsl.analysis.error_metrics import TAYLOR, energy_units
from fairchem_piwsl.analysis.potential import Potential, load_potential
from fairchem_piwsl.datasets.read import read_labelled
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import file_name, read_json, write_result

# Finite-difference steps in Angstrom: near the optimum of truncation against rounding.
STEPS = {"float64": 1e-3, "float32": 1e-2}
# Steps smaller by ten each that a jump is stepped around with; in single precision rounding forbids them.
REFINEMENTS = {"float64": 3, "float32": 0}
# Forces and gradient closer than this, relative to the forces, count as one and the same.
SAME = {"float64": 1e-5, "float32": 1e-2}


def check_consistency(
    checkpoint: str | Path,
    data: str | Path,
    *,
    units: str = "kcal/mol",
    structures: int = 50,
    jacobians: int = 5,
    directions: int = 8,
    dr_range: tuple[float, float] = (0.001, 0.05),
    points: int = 9,
    seed: int = 0,
    batch_size: int = 16,
    out: Path | None = None,
    **load_options: Any,
) -> dict[str, Any]:
    """Measure how well forces and energy of a model belong together, as a dictionary ready for JSON.

    structures: size of the random sample. jacobians: how many of them get a full force Jacobian (the costly
    part, 12 n_atoms evaluations each). directions: random directions per structure for the force mismatch.
    dr_range, points: smallest, largest and number of displacements, root mean square per atom, Angstrom.
    """
    factor, energy_unit, force_unit = energy_units(units)
    if not 0 < dr_range[0] < dr_range[1] < math.inf or points < 2:
        raise UserError("--dr: give a smallest and a larger displacement in Angstrom, both above 0.")
    random = np.random.default_rng(seed)
    everything = [item.atoms for item in read_labelled(data)]
    chosen = random.permutation(len(everything))[:structures]
    sample = [everything[i] for i in sorted(chosen)]
    potential, precision = load_precise(checkpoint, sample[0], **load_options)
    step = STEPS[precision]

    magnitudes = np.geomspace(*dr_range, points)
    residuals = measures.taylor_residuals(potential, sample, magnitudes, random, batch_size)
    curves = {key: measures.root_mean_square(values, axis=1) for key, values in residuals.items()}
    refinements = REFINEMENTS[precision]
    predicted, from_energy, jumps = measures.directional_derivatives(
        potential, sample, directions, step, random, batch_size, refinements
    )
    jacobian_sample = sample[:: max(1, len(sample) // max(jacobians, 1))][:jacobians]
    curls = [
        measures.curl_measures(measures.force_jacobian(potential, atoms, step, batch_size, refinements))
        for atoms in jacobian_sample
    ]
    forces = potential.predict(sample, batch_size).forces
    net = measures.net_force_and_torque(sample, forces)
    mismatch = measures.root_mean_square(predicted - from_energy)
    # a model may predict no force at all: then the mismatch is held against the gradient, where there is one
    size = measures.root_mean_square(predicted) or measures.root_mean_square(from_energy) or 1.0
    relative = mismatch / size
    result = {
        "command": "consistency",
        "model": potential.name,
        "checkpoint": str(potential.path),
        "data": str(data),
        "precision": precision,
        "structures": len(sample),
        "units": {
            "energy": energy_unit,
            "force": force_unit,
            "curl": f"{energy_unit}/Angstrom^2",
            "torque": energy_unit,
            "displacement": "Angstrom, root mean square per atom",
        },
        "displacements": magnitudes,
        "residuals": {key: curve * factor for key, curve in curves.items()},
        "slopes": {key: measures.fitted_slope(magnitudes, curve) for key, curve in curves.items()},
        "force_mismatch": {
            "rmse": mismatch * factor,
            "relative": relative,
            "directions": directions,
            "jumps": jumps if refinements else None,
            "predicted": predicted.ravel() * factor,
            "from_energy": from_energy.ravel() * factor,
        },
        "curl": {
            "structures": len(curls),
            "per_atom_mean": float(np.mean(np.concatenate([c for c, _ in curls]))) * factor
            if curls
            else None,
            "asymmetry": float(np.mean([a for _, a in curls])) if curls else None,
        },
        "net": net and {key: value if key == "molecules" else value * factor for key, value in net.items()},
        "conservative": bool(relative < SAME[precision]),
    }
    result["verdict"] = verdict(result)
    if out is not None:
        path = result_path(out, f"consistency_{file_name(potential.name)}", potential.path)
        write_result(path, result, path.with_suffix(".png"))
        plot_consistency(result, path.with_suffix(".png"))
    return result


def result_path(out: Path, stem: str, checkpoint: Path) -> Path:
    """`<stem>.json`, or the first of `<stem>_2.json`, ... that is free or holds a result of this checkpoint."""

    def holds_another(path: Path) -> bool:
        try:
            return Path(read_json(path)["checkpoint"]).resolve() != checkpoint.resolve()
        except (KeyError, TypeError, UserError):  # not a result at all
            return True

    names = (out / f"{stem}{f'_{number}' if number > 1 else ''}.json" for number in itertools.count(1))
    return next(path for path in names if not path.exists() or not holds_another(path))


def load_precise(checkpoint: str | Path, probe: Any, **load_options: Any) -> tuple[Potential, str]:
    """The model in double precision, or in single precision where its code is bound to it."""
    potential = load_potential(checkpoint, dtype="float64", **load_options)
    try:
        potential.predict([probe])
    except RuntimeError:
        return load_potential(checkpoint, dtype="float32", **load_options), "float32"
    return potential, "float64"


def verdict(result: dict[str, Any]) -> str:
    """What the numbers mean for dynamics, in a sentence."""
    relative = result["force_mismatch"]["relative"]
    if result["conservative"]:
        return "Forces are the energy's gradient: dynamics conserves energy as far as the integrator does."
    return (
        f"Forces differ from the energy's gradient by {relative:.1%}: "
        "dynamics at constant energy will drift, use a thermostat or train with gradient forces."
    )


def plot_consistency(result: dict[str, Any], path: Path) -> Path:
    """Taylor residuals against displacement (left), predicted force against -dE/du (right)."""
    units = result["units"]
    with figures.figure(11.0, 4.6) as fig:
        left, right = fig.subplots(1, 2, width_ratios=(1.25, 1))
        x = np.asarray(result["displacements"])
        for number, (key, label) in enumerate(TAYLOR.items()):
            slope = result["slopes"][key]
            left.plot(
                x,
                result["residuals"][key],
                marker=figures.marker(number),
                markersize=5,
                color=figures.colour(number),
                linestyle="-" if key.endswith("k0") else "--",
                label=f"{label}: slope {slope:.2f}",
            )
        figures.log_scale(left.xaxis)
        left.set(yscale="log", xlabel="displacement |dr|, root mean square per atom (Angstrom)")
        left.set(ylabel=f"residual, root mean square ({units['energy']})")
        left.legend(title="slope 2 and 3 if forces fit the energy", title_fontsize=9)
        predicted = np.asarray(result["force_mismatch"]["predicted"])
        energy = np.asarray(result["force_mismatch"]["from_energy"])
        limit = 1.05 * max(np.abs(predicted).max(), np.abs(energy).max(), 1e-12)
        figures.diagonal(right, -limit, limit)
        right.scatter(energy, predicted, s=12, alpha=0.5, color=figures.colour(0), linewidths=0)
        right.locator_params(nbins=5)
        right.set(
            xlabel=f"-dE/du by finite differences ({units['force']})",
            ylabel=f"predicted force along u ({units['force']})",
            title=f"mismatch {result['force_mismatch']['relative']:.2g} of the force",
        )
        fig.suptitle(result["model"])
        return figures.save(fig, path)
