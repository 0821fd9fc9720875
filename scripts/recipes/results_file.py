"""The results of a recipe, a JSON file of runs: by data set, model and method, and against the best baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import read_json
from fairchem_piwsl.report.statistics import Change, paired_change

Run = Mapping[str, Any]
Results = Mapping[str, Any]
#: data set and model -> method -> its runs
Groups = dict[tuple[str, str], dict[str, list[Run]]]
#: prefix of methods that train without force labels, which are compared among themselves
ENERGIES_ONLY = "energies_only_"
ENERGY, FORCES = "energy_rmse", "forces_rmse"
TITLES = {ENERGY: "energy RMSE, kcal/mol", FORCES: "forces RMSE, kcal/mol/Å"}


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results file.

    Raises:
        UserError: it is missing, or no results file.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: write it with `python scripts/paper.py {path.stem} --publish`."
        )
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("runs"), list):
        raise UserError(f"{path} is no file of results: it needs a list 'runs'.")
    return content


def grouped(results: Mapping[str, Any], pattern: str = "*") -> Groups:
    """Runs by data set and model, and by method, in the order of the file.

    Args:
        results: content of a results file.
        pattern: shell pattern of `<data set>/<model>`.
    """
    found: Groups = {}
    for run in matching(results, pattern):
        found.setdefault((run["data"], run["model"]), {}).setdefault(run["method"], []).append(run)
    return found


def matching(results: Mapping[str, Any], pattern: str) -> list[Run]:
    """Runs whose `<data set>/<model>` is that of a shell pattern."""
    return [run for run in results["runs"] if fnmatch(f"{run['data']}/{run['model']}", pattern)]


def families(methods: Mapping[str, list[Run]]) -> list[dict[str, list[Run]]]:
    """Methods that are compared with each other: those with force labels, those without."""
    split = [
        {name: runs for name, runs in methods.items() if name.startswith(ENERGIES_ONLY) == without}
        for without in (False, True)
    ]
    return [family for family in split if family]


def is_baseline(method: str) -> bool:
    """Whether a method of a recipe has no weak terms, whatever its weights and its length."""
    return method.removeprefix(ENERGIES_ONLY).startswith("baseline")


def is_longer(runs: Sequence[Run]) -> bool:
    """Whether these runs had more steps, for comparisons at equal wall time."""
    return runs[0]["length"] != 1


def best_baseline(family: Mapping[str, list[Run]], longer: bool = False) -> str | None:
    """The baseline with the smallest product of energy and force error in the mean; None where there is none.

    The product, since a weight of the energy trades one error for the other.

    Args:
        family: methods that are compared with each other.
        longer: among those with more steps, or among those without.
    """
    candidates = [name for name in family if is_baseline(name) and is_longer(family[name]) == longer]
    return min(candidates, key=lambda name: product_of_errors(family[name]), default=None)


def product_of_errors(runs: Sequence[Run]) -> float:
    """Mean energy error times mean force error."""
    return float(np.prod([np.mean(list(by_seed(runs, name).values())) for name in (ENERGY, FORCES)]))


def by_seed(runs: Sequence[Run], error: str) -> dict[int, float]:
    """An error on the test set of each seed, in kcal/mol (and Angstrom)."""
    return {run["seed"]: run["errors"][error] for run in runs}


def of_shared_seeds(before: Sequence[Run], after: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Both groups without the runs of seeds that the other one lacks."""
    seeds = {run["seed"] for run in before} & {run["seed"] for run in after}
    first, second = ([run for run in runs if run["seed"] in seeds] for runs in (before, after))
    return first, second


def changes(runs: Sequence[Run], before: Sequence[Run]) -> tuple[Change | None, Change | None]:
    """Changes of the energy and of the force error."""
    energy, forces = (paired_change(by_seed(runs, e), by_seed(before, e)) for e in (ENERGY, FORCES))
    return energy, forces
