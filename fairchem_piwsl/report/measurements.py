"""What was measured on training runs, from the JSON that evaluations, consistency checks and dynamics left."""

import filecmp
import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_piwsl.analysis.error_metrics import energy_units
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import read_json
from fairchem_piwsl.report.runs import SEED, Run, dataset_label, family_of
from fairchem_piwsl.units import ENERGY_UNITS

# Beginnings of the names that the commands give to results.
RESULTS = ("evaluate", "consistency", "md.", "result.")


def add_measurements(
    runs: Sequence[Run], folders: Sequence[str | Path], units: str, asked_for: Sequence[Path] = ()
) -> None:
    """Put what `piwsl evaluate`, `consistency`, `md` and comparisons left in JSON files below `folders` to runs.

    Newer files replace what older ones say; evaluations that were `asked_for` leave no other ones.
    """
    paths = {path for folder in folders for path in Path(folder).rglob("*.json")}
    for path in [*sorted(paths, key=lambda path: path.stat().st_mtime), *asked_for]:
        try:
            content = read_json(path)
        except UserError:
            if path.name.startswith(RESULTS) or path in asked_for:
                raise
            print(f"{path}: not readable as JSON, so left out.", file=sys.stderr)
            continue
        if not isinstance(content, dict):
            continue
        if asked_for and content.get("command") == "evaluate" and path not in asked_for:
            continue
        try:
            _add(runs, content, units)
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"{path}: not what piwsl {content.get('command', '')} writes ({error!r}); delete it or move it away."
            ) from None
    _name_tests(runs)


def _add(runs: Sequence[Run], content: dict[str, Any], units: str) -> None:
    command = content.get("command")
    if command not in (None, "evaluate", "consistency", "md"):
        return
    for entry in content.get("models", [content]) if command else [content]:
        run = _owner(runs, entry.get("checkpoint"))
        if run is None:
            continue
        measured = _measured(content, entry, units)
        if command in ("evaluate", "consistency"):
            run.tests.setdefault(_test(content, entry, run), {}).update(measured)
        else:
            run.values |= measured
        if command == "md":
            starts = [(start["time"], start["failed"]) for start in content["runs"]]
            run.dynamics[_conditions(content)] = starts


def _test(content: dict[str, Any], entry: dict[str, Any], run: Run) -> str:
    """What was measured on, in words; with the file's name where that is not the run's own checkpoint."""
    name = Path(entry["checkpoint"]).name
    data, at, frames = content["data"].partition("@")
    words = [dataset_label(data) + at + frames, f"{content['structures']} structures"]
    return ", ".join(words if name == run.checkpoint.name else [*words, name])


def _name_tests(runs: Sequence[Run]) -> None:
    """Put what was measured on test sets to `values`; under the test's name where a family has several."""
    for family in {family_of(run) for run in runs}:
        members = [run for run in runs if family_of(run) == family]
        kinds = {(key, test) for run in members for test, found in run.tests.items() for key in found}
        several = Counter(key for key, _ in kinds)
        for run in members:
            for test, found in run.tests.items():
                run.values |= {f"{key}@{test}" if several[key] > 1 else key: found[key] for key in found}


def _owner(runs: Sequence[Run], checkpoint: Any) -> Run | None:
    if not isinstance(checkpoint, str):
        return None
    path = Path(checkpoint)
    for run in runs:
        if path.exists() and path.resolve().parent == run.checkpoint.parent.resolve():
            return run
    # Moved folders keep the end of their path; upstream's time stamps may be the same for two of them.
    alike = [_common_end(run.checkpoint.parent.resolve().parts, path.parent.parts) for run in runs]
    longest = max(alike, default=0)
    shared = path.parent.parts[-longest:]
    telling = any(part not in ("checkpoints", "run") and not SEED.fullmatch(part) for part in shared)
    if longest < 3 or alike.count(longest) > 1 or not telling:
        return None
    run = runs[alike.index(longest)]
    # What is there still was copied, if it is this run's; else it is a run that is not reported.
    copy = run.checkpoint.with_name(path.name)
    same = not path.exists() or (copy.exists() and filecmp.cmp(path, copy, shallow=False))
    return run if same else None


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """How many last parts two paths share."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _measured(content: dict[str, Any], entry: dict[str, Any], units: str) -> dict[str, float]:
    """Numbers of one JSON file under the names that the report uses, energies in `units`."""
    factor = energy_units(units)[0]
    values: dict[str, float | None] = {}
    command = content.get("command")
    if command == "evaluate":
        for metric, estimate in entry["metrics"].items():
            values[metric] = convert(estimate["value"], content["units"][metric], factor)
    elif command == "consistency":
        unit = content["units"]["energy"]
        values["force_curl"] = convert(content["curl"]["per_atom_mean"], unit, factor)
        values["jacobian_asymmetry"] = content["curl"]["asymmetry"]
        values["force_mismatch"] = convert(content["force_mismatch"]["rmse"], unit, factor)
        values["pitc_slope"] = content["slopes"]["pitc_k0"]
    elif command == "md":
        drifts = [run["drift"] for run in content["runs"]]
        at = f"@{_conditions(content)}"  # dynamics under other conditions is another quantity
        values["time_to_failure" + at] = content["summary"]["time_to_failure_mean"]
        values["failed_runs" + at] = content["summary"]["failed"] / content["summary"]["runs"]
        values["distances_mae" + at] = content["distances"]["mae"]
        if None not in drifts:
            values["energy_drift" + at] = float(np.mean(np.abs(drifts)))
    elif {"energy_rmse", "forces_rmse"} <= content.keys():  # a comparison's result, in kcal/mol
        for metric in ("energy_rmse", "forces_rmse"):
            values[metric] = convert(content[metric], "kcal/mol", factor)
    return {key: float(value) for key, value in values.items() if value is not None}


def _conditions(content: dict[str, Any]) -> str:
    """What dynamics ran, under what, and when it counted as failed, in words."""
    settings, failure = content["settings"], content["criterion"]
    friction = f", {settings['friction']:g}/fs" if settings["ensemble"] == "nvt" else ""
    return (
        f"{content['formula']}, {settings['ensemble'].upper()}, {settings['temperature']:g} K, "
        f"{content['length']:g} ps, {settings['timestep']:g} fs{friction}, "
        f"failure at {failure['threshold']:g} {failure['unit']}"
    )


def convert(value: float | None, unit: str, factor: float) -> float | None:
    """`value` in `unit` (or `unit` per something) in the unit that is `factor` per eV; others stay."""
    energy = unit.split("/Angstrom")[0].split("/atom")[0]
    return value if value is None or energy not in ENERGY_UNITS else value * ENERGY_UNITS[energy] * factor
