"""Error measures over a whole set: root mean squares, and labels that are partly missing.

Upstream adds up `total` and `numel` of each metric over batches and ranks and divides at the end. Here a
root mean square is carried as a mean square, the root being taken last, and a metric without a single label
in the whole set is left out.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.modules.evaluator import Evaluator
from torch import Tensor

from fairchem_piwsl.errors import DivergedError
from fairchem_piwsl.kinds import metric_name
from fairchem_piwsl.training.missing_labels import labelled_structures

#: root mean squares of every set with these outputs
ROOT_MEAN_SQUARES = ("energy_rmse", "energy_per_atom_rmse", "forces_rmse", "pitc_rmse")

Metrics = dict[str, dict[str, Any]]


def lower_is_better(metric: str) -> bool:
    """Whether a metric is an error; agreement (`..._within_threshold`, `cosine_similarity`) is not."""
    return not metric.endswith(("within_threshold", "cosine_similarity"))


def add(metrics: Metrics, name: str, total: float, numel: int) -> None:
    """Add one batch's sum to a metric; a batch without labels still makes the entry, on every rank."""
    entry = metrics.setdefault(name, {"metric": math.nan, "total": 0.0, "numel": 0.0})
    entry["total"] += total
    entry["numel"] += numel
    entry["metric"] = _value(name, entry)


def add_terms(metrics: Metrics, log: Mapping[str, Tensor], step: int) -> None:
    """Add the terms of one batch's loss, with one transfer from the device.

    Raises:
        DivergedError: a term is NaN or infinite.
    """
    values = torch.stack(list(log.values())).tolist() if log else []
    for name, value in zip(log, values, strict=True):
        if not math.isfinite(value):
            raise DivergedError(
                f"{name} is {value} at step {step}: training diverged; lower optim.lr_initial or set "
                "optim.clip_grad_norm."
            )
        add(metrics, name, value, 1)


def add_squares(
    metrics: Metrics,
    name: str,
    error: Tensor,
    labelled: Tensor | None = None,
    structure: Tensor | None = None,
) -> None:
    """Add the squares of `error` to a root mean square.

    Args:
        metrics: what the batch is added to.
        name: of the metric.
        error: one row for each structure [B] or atom [N, 3].
        labelled: structures that count [B]; all where None.
        structure: structure of each row [N], where rows are atoms.
    """
    if labelled is not None and not labelled.all():
        error = error[labelled if structure is None else labelled[structure]]
    add(metrics, name, error.double().square().sum().item(), error.numel())


def summable(metrics: Metrics) -> Metrics:
    """Sums as tensors of one type on all ranks, whatever labels each of them has, and for which 0 / 0 is NaN."""
    return {
        name: {key: torch.tensor(entry[key], dtype=torch.float64) for key in ("total", "numel")}
        for name, entry in metrics.items()
    }


def finish(metrics: Metrics) -> Metrics:
    """Plain floats of an aggregated set; metrics without labels are left out."""
    done: Metrics = {}
    for name, entry in metrics.items():
        total, numel = float(entry["total"]), float(entry["numel"])
        if numel > 0:
            done[name] = {"total": total, "numel": numel}
            done[name]["metric"] = _value(name, done[name])
    return done


def _value(name: str, entry: Mapping[str, Any]) -> float:
    numel = float(entry["numel"])
    mean = float(entry["total"]) / numel if numel else math.nan
    return math.sqrt(mean) if name.endswith("_rmse") else mean


class LabelledEvaluator:
    """Upstream's evaluator over what is labelled, with root mean squares, always of energy and forces.

    Args:
        evaluator: upstream's.
        levels: level of each output, `system` or `atom`.
    """

    def __init__(self, evaluator: Evaluator, levels: Mapping[str, str]) -> None:
        self.evaluator = evaluator
        self.levels = levels

    def eval(
        self, prediction: dict[str, Tensor], target: dict[str, Tensor], prev_metrics: Metrics | None = None
    ) -> Metrics:
        """Add one batch. Outputs in label units; where fixed atoms do not count, both sides are without them."""
        metrics = {} if prev_metrics is None else prev_metrics
        num_structures = len(target["natoms"])
        structure = torch.repeat_interleave(
            torch.arange(num_structures, device=target["natoms"].device), target["natoms"]
        )
        rows: dict[str, Tensor | None] = dict.fromkeys(self.levels)
        for name, level in self.levels.items():
            if level == "atom":  # `natoms` is of free atoms, also for an output that counts all of them
                rows[name] = structure if len(target[name]) == len(structure) else target["batch"]
        labelled = {
            name: labelled_structures(target[name], rows[name], num_structures) for name in self.levels
        }
        for name, functions in self.evaluator.target_metrics.items():
            for function in functions:
                if function == "rmse" and name in self.levels:
                    continue  # upstream's `rmse` is a mean of norms; the root mean square takes its name
                joint = name not in self.levels or function == "energy_forces_within_threshold"
                keep = torch.stack([labelled[key] for key in (labelled if joint else [name])]).all(0)
                both = prediction, target
                if not keep.all():
                    both = _select(prediction, keep, rows), _select(target, keep, rows)
                self._add_upstream(metrics, name, function, *both)
        for name in self.levels:
            if name not in ("energy", "forces") and "rmse" not in self.evaluator.target_metrics.get(name, ()):
                continue
            error = prediction[name].double() - target[name].double()
            add_squares(metrics, f"{name}_rmse", error, labelled[name], rows[name])
            if name == "energy":
                natoms = target["ptr"].diff() if "ptr" in target else target["natoms"]
                per_atom = error.reshape(num_structures) / natoms
                add_squares(metrics, "energy_per_atom_rmse", per_atom, labelled[name])
        return metrics

    def _add_upstream(
        self,
        metrics: Metrics,
        name: str,
        function: str,
        prediction: dict[str, Tensor],
        target: dict[str, Tensor],
    ) -> None:
        """Upstream's metric function; where no structure is labelled, an entry without any."""
        if len(target["natoms"]):
            single = Evaluator(eval_metrics={name: [function]})
            # upstream fills a new dict where the one it is given is empty
            metrics.update(single.eval(prediction, target, metrics))
        else:
            add(metrics, metric_name(name, function), 0.0, 0)


def _select(values: dict[str, Tensor], keep: Tensor, rows: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The outputs and atom counts of some structures."""
    picked = {name: values[name][keep if row is None else keep[row]] for name, row in rows.items()}
    return {**picked, "natoms": values["natoms"][keep]}
