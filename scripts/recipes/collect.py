"""Every number of a recipe in one JSON file, from the folders of its runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from fairchem_piwsl.config import data_folder, get_value, read_yaml
from fairchem_piwsl.datasets.lmdb_checks import number_of_structures
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import read_json
from fairchem_piwsl.report.curves import read_curves
from fairchem_piwsl.settings import PIWSLSettings
from recipes.carry_out import Training, evaluated, test_folder
from recipes.recipe_file import PlannedRun, Recipe

#: what `auto` decides, as the trainer logs it
DECIDED = ("train/weight_", "train/gradient_")
#: what is measured once for runs that have these in common
COSTS = {"cost": ("data", "model"), "step_seconds": ("data", "model", "method")}
ENERGY_ERRORS = ("energy_rmse", "energy_mae", "energy_per_atom_rmse", "energy_per_atom_mae")
ERRORS = (*ENERGY_ERRORS, "forces_rmse", "forces_mae", "forces_cosine")


def collect(recipe: Recipe, scale: str, planned: Mapping[str, PlannedRun], out: Path) -> dict[str, Any]:
    """All finished runs of a recipe, those of `planned` with every seed that `out` has.

    Returns:
        `recipe`, `title`, `scale`, `units`, `planned` (the number of configs) and `runs`, each with `data`, `model`,
        `method`, `length`, `settings`, `seed`, `n_train`, `steps`, `batch_size`, `train_seconds`, `errors` on the
        test set of `structures` structures, `tests` (errors on further test sets), `cost` and `step_seconds` (see
        `recipes.cost`) and `decided` (the last weights and norms of gradients of weights that set themselves).

    Raises:
        UserError: the training set of a run is gone, or counts from another folder than this.
    """
    runs = [
        _entry(recipe, run, config, folder, out)
        for name, run in planned.items()
        if (config := out / "configs" / f"{name}.yml").exists()
        for folder in sorted((out / name).glob("seed*"), key=_seed)
        if (folder / "trained.json").exists() and evaluated(folder / "evaluate")
    ]
    return {
        "recipe": recipe.name,
        "title": recipe.title,
        "scale": scale,
        "units": {"energy": "kcal/mol", "forces": "kcal/mol/Angstrom", "time": "s", "eps_max": "Angstrom"},
        "planned": len(planned),
        "runs": runs,
    }


def with_published(
    results: Mapping[str, Any], published: Mapping[str, Any], planned: Mapping[str, PlannedRun]
) -> dict[str, Any]:
    """Results with the published runs that they lack, in the order of the plan: a recipe may run on several machines.

    Costs that were measured for one seed, or published, hold for all. Other keys of a method are not in the file.

    Raises:
        UserError: published numbers would be lost or mixed with others: of another scale; of runs that the recipe no
            longer has, or has with another length or with other values of what it varies; of another number of steps
            or structures; or new ones come from other data than the recipe's.
    """
    kind = itemgetter("data", "model", "method", "length", "settings")
    size = itemgetter("n_train", "steps", "batch_size")
    if published["scale"] != results["scale"]:
        raise UserError(f"published results are of the scale {published['scale']}, not {results['scale']}.")
    order = [
        (run.data.name, run.model, run.label, run.length, dict(run.settings)) for run in planned.values()
    ]
    if lost := [run["method"] for run in published["runs"] if kind(run) not in order]:
        raise UserError(
            f"the recipe no longer has {lost[0]} as it is published; remove its runs from the file first, or keep it."
        )
    known_runs = [*published["runs"], *results["runs"]]
    runs: dict[tuple[int, int], dict[str, Any]] = {}
    for run in known_runs:
        before = runs.setdefault((order.index(kind(run)), run["seed"]), run)
        if size(before) != size(run) or run["trained_on"] != run["data"]:
            raise UserError(
                f"{run['data']}/{run['model']}_{run['method']}, seed {run['seed']}: {run['steps']} steps with "
                f"{run['n_train']} structures of {run['trained_on']} do not go with what is published."
            )
        runs[order.index(kind(run)), run["seed"]] = run
    found = [runs[place] for place in sorted(runs)]
    for cost, same in COSTS.items():
        place = itemgetter(*same)
        known = {place(run): {cost: run[cost]} for run in known_runs if cost in run}
        found = [known.get(place(run), {}) | run for run in found]
    return {**results, "runs": found}


def _seed(folder: Path) -> int:
    return int(folder.name.removeprefix("seed"))


def _entry(recipe: Recipe, run: PlannedRun, config_file: Path, folder: Path, out: Path) -> dict[str, Any]:
    config = read_yaml(config_file, "config")
    optim = config["optim"]
    train = Path(config["dataset"]["train"]["src"])
    if not train.exists():
        raise UserError(
            f"{config_file}: its training set {train} is not here; call this where trainings are started, with the "
            "data of the recipe."
        )
    n_train = number_of_structures(train)
    errors, structures = _errors(folder / "evaluate")
    training = Training(run.name, config_file, Path(), _seed(folder), folder)
    tests = {name: test_folder(training, name, out) for name in recipe.tests}
    cost, step = cost_file(run, out), step_file(run, out)
    return {
        "data": run.data.name,
        "trained_on": data_folder(config).name,
        "model": run.model,
        "method": run.label,
        "length": run.length,
        "settings": dict(run.settings),
        "seed": _seed(folder),
        "n_train": n_train,
        "steps": optim["max_epochs"] * math.ceil(n_train / optim["batch_size"]),
        "batch_size": optim["batch_size"],
        "train_seconds": read_json(folder / "trained.json")["train_seconds"],
        "structures": structures,
        "errors": errors,
        **({"tests": found} if (found := _further(tests)) else {}),
        **({"cost": read_json(cost)} if cost.exists() else {}),
        **({"step_seconds": read_json(step)["seconds"]} if step.exists() else {}),
        **({"decided": decided} if (decided := _decided(folder, config)) else {}),
    }


def _errors(folder: Path) -> tuple[dict[str, float], int]:
    """Errors of the one model in the newest evaluation, kcal/mol and Angstrom, and the number of structures."""
    result = read_json(evaluated(folder)[-1])
    [model] = result["models"]
    return {name: model["metrics"][name]["value"] for name in ERRORS}, result["structures"]


def _further(tests: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    return {name: _errors(folder)[0] for name, folder in tests.items() if evaluated(folder)}


def _decided(folder: Path, config: Mapping[str, Any]) -> dict[str, float]:
    """The last value of each weight and norm of a method whose weights set themselves, and the displacement of its config.

    Without one, the model says whether there is any, which is not in the files of a run.
    """
    if not get_value(config, "optim.piwsl.auto"):
        return {}
    own = PIWSLSettings.from_config(config["optim"]["piwsl"])
    curves = read_curves(next((folder / "logs" / "tensorboard").iterdir()))
    found = {tag: curve for tag, curve in curves.items() if tag.startswith(DECIDED)}
    last = {tag.removeprefix("train/"): float(curve.value[-1]) for tag, curve in found.items()}
    given = {"eps_max": own.eps_max, "every_n_steps": own.every_n_steps} if own.eps_max else {}
    return given | last


def cost_file(run: PlannedRun, out: Path) -> Path:
    """The cost of a prediction belongs to a data set and a model, whatever the method."""
    return out / "cost" / run.data.name / f"{run.model}.json"


def step_file(run: PlannedRun, out: Path) -> Path:
    """The cost of a training step belongs to a config, whatever the seed."""
    return out / "cost" / f"{run.name}_step.json"
