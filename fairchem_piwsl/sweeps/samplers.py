"""Samplers and pruners by the names used in sweep files; their options are Optuna's."""

import inspect
import warnings
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.sweeps.sweep_file import Sweep


class _Grid(optuna.samplers.GridSampler):
    """Optuna's grid, which would stop a loop that workers here do not have."""

    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the slots of the study decide when the sweep is over."""


SAMPLERS: dict[str, Any] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "qmc": optuna.samplers.QMCSampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "grid": _Grid,
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
    if name == "grid":
        options["search_space"] = _grid(sweep)
    elif name == "qmc":  # one sequence shared by all workers, so all need the same seed
        drawn = optuna.samplers.RandomSampler(seed=sweep.seed + draw)  # entries that not every trial has
        options = {"seed": sweep.seed, "scramble": True, "independent_sampler": drawn, **options}
    else:
        seed = options.get("seed", sweep.seed)
        options["seed"] = seed + draw if isinstance(seed, int) else seed
    if name == "tpe":  # running trials count as bad ones: parallel workers look elsewhere
        options = {"constant_liar": True, **options}
    return _build("sampler", name, SAMPLERS[name], options)


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


def _grid(sweep: Sweep) -> dict[str, list[Any]]:
    for parameter in sweep.space:
        if not isinstance(parameter.distribution, CategoricalDistribution) or parameter.when:
            raise UserError(
                f"sampler 'grid' needs categorical entries without 'when': change {parameter.key}."
            )
    return {p.key: list(p.distribution.choices) for p in sweep.space}  # type: ignore[attr-defined]
