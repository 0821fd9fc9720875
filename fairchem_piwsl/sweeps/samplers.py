"""Samplers and pruners by the names used in sweep files; their options are Optuna's."""

import inspect
import itertools
import warnings
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.kinds import MAX_SEED
from fairchem_piwsl.sweeps.space import suggest
from fairchem_piwsl.sweeps.sweep_file import Sweep

SAMPLERS: dict[str, Any] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "qmc": optuna.samplers.QMCSampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "grid": optuna.samplers.RandomSampler,  # of nothing: each slot comes with its point
}
PRUNERS: dict[str, Any] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "threshold": optuna.pruners.ThresholdPruner,
}


def make_sampler(sweep: Sweep, draw: int = 0) -> optuna.samplers.BaseSampler:
    """The sweep's sampler; `draw` varies its seed, so that no two workers propose the same values."""
    name, options = _chosen("sampler", sweep.sampler, SAMPLERS)
    if name == "qmc":  # one sequence shared by all workers, so all need the same seed
        # for entries that not every trial has
        drawn = optuna.samplers.RandomSampler(seed=_seed(sweep.seed, draw))
        options = {"seed": sweep.seed, "scramble": True, "independent_sampler": drawn, **options}
    else:
        seed = options.get("seed", sweep.seed)
        options["seed"] = _seed(seed, draw) if isinstance(seed, int) else seed
    if name == "tpe":  # running trials count as bad ones: parallel workers look elsewhere
        options = {"constant_liar": True, **options}
    return _build("sampler", name, SAMPLERS[name], options)


def _seed(seed: int, draw: int) -> int:
    """A seed of its own for each draw, which numpy takes."""
    return (seed + draw) % (MAX_SEED + 1)


def check_sampler(sweep: Sweep) -> None:
    """Raise for a grid with more trials than points, and for a sampler that cannot draw: some notice it only then."""
    sampler, points = make_sampler(sweep), grid(sweep)
    if points and sweep.trials > len(points):
        raise UserError(
            f"trials is {sweep.trials}, but the grid has {len(points)} points; give at most that."
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # these are no trials of the sweep
    study = optuna.create_study(sampler=sampler, directions=sweep.objective.directions)  # type: ignore[arg-type]
    try:
        for _ in range(3):
            trial = study.ask()
            suggest(trial, sweep.space)
            study.tell(trial, [0.0] * len(study.directions))
    except (AssertionError, ImportError, TypeError, ValueError) as error:
        raise UserError(
            f"sampler '{sweep.sampler['name']}' cannot draw ({error}); correct its options or choose another one."
        ) from error


def make_pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    """The sweep's pruner; its steps are training steps."""
    name, options = _chosen("pruner", sweep.pruner, PRUNERS)
    return _build("pruner", name, PRUNERS[name], options)


def _chosen(what: str, block: dict[str, Any], known: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    options = dict(block)
    name = options.pop("name")
    if name not in known:
        raise UserError(f"{what} '{name}' is not known; choose one of {', '.join(known)}.")
    allowed = inspect.signature(known[name].__init__).parameters
    for option in options:
        if option not in allowed or option == "self":
            raise UserError(f"{what} '{name}' has no option '{option}'; see Optuna's {known[name].__name__}.")
    return name, options


def _build(what: str, name: str, kind: Any, options: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(**options)
    except ImportError as error:
        raise UserError(
            f"{what} '{name}' needs another package ({error}); install it or use 'tpe'."
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} '{name}' does not accept its options: {error}") from error


def grid(sweep: Sweep) -> list[dict[str, Any]]:
    """All points of the search space, in their order, where the sampler is a grid; no two workers draw the same."""
    if sweep.sampler["name"] != "grid":
        return []
    choices = []
    for parameter in sweep.space:
        if not isinstance(parameter.distribution, CategoricalDistribution) or parameter.when:
            raise UserError(
                f"sampler 'grid' needs categorical entries without 'when': change {parameter.key}."
            )
        choices.append(parameter.distribution.choices)
    keys = [parameter.key for parameter in sweep.space]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*choices)]
