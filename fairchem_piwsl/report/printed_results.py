"""The paper's printed errors (Takamoto, Zaverkin, Niepert, ICML 2025), to stand beside one's own."""

import csv
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fairchem_piwsl.report.runs import Run, is_baseline


@dataclass(frozen=True)
class Printed:
    """One printed value, kcal/mol (and Angstrom), with the table that has it."""

    table: str
    dataset: str
    n_train: int
    model: str
    variant: str
    quantity: str
    value: float
    std: float | None


def printed_values() -> list[Printed]:
    """All values of the paper's tables, in the order of the file."""
    file = resources.files("fairchem_piwsl.report").joinpath("reference_results.csv")
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    numbers: dict[str, Any] = {
        "n_train": int,
        "value": float,
        "std": lambda text: float(text) if text else None,
    }
    return [Printed(**{name: numbers.get(name, str)(text) for name, text in row.items()}) for row in rows]


def variants_of(run: Run) -> list[str]:
    """The paper's names that fit a run's method, the most specific one first."""
    piwsl = run.config.get("optim", {}).get("piwsl") or {}
    if is_baseline(run.method):
        return ["baseline"]
    if piwsl.get("noisy_nodes"):
        return ["noisy_nodes"]
    if piwsl.get("c_wl"):
        predicted = piwsl.get("wl_forces") == "predicted"
        return ["weak_label_predicted_forces" if predicted else "weak_label"]
    if piwsl.get("perturbation") == "adversarial":
        return ["adversarial"]
    if piwsl.get("c_pitc") and piwsl.get("c_pisc"):
        return ["piwsl", "pitc+pisc", "random", f"pisc_case{piwsl.get('pisc_case', 1)}"]
    if piwsl.get("c_pisc"):
        return ["pisc"]
    fraction, loss = piwsl.get("fraction", 1.0), piwsl.get("point_loss", "mse")
    varied = [f"pitc_eps{piwsl.get('eps_max', 0.01):g}"]
    varied += [f"pitc_fraction{100 * fraction:g}"] if fraction < 1 else []
    varied += [f"pitc_{loss}"] if loss != "mse" else []
    return [*varied, "piwsl", "pitc", "random", "pitc_mse", "pitc_fraction100"]


def dataset_of(run: Run, datasets: set[str]) -> str | None:
    """The paper's data set that a run's path or folder speaks of: all words of its name occur in it."""
    path = re.sub(r"[^a-z0-9]", "", str(run.config.get("dataset", {}).get("src", "")).lower())
    fitting = [name for name in datasets if all(word in path for word in name.split("_"))]
    return max(fitting, key=len) if fitting else None


def printed_for(run: Run, quantity: str, dataset: str | None = None) -> Printed | None:
    """The paper's value for the data set, training size, model and method of `run`; None where there is none."""
    values = printed_values()
    name = dataset or dataset_of(
        run, {item.dataset for item in values if not item.dataset.endswith("_forces")}
    )
    models = {run.model}
    if run.method.startswith("energies only"):
        name = f"{name}_no_forces"
        models.add(f"{run.model}_direct")
    fitting = {
        item.variant: item
        for item in reversed(values)  # of two tables the first one wins
        if (item.dataset, item.n_train, item.quantity) == (name, run.n_train, quantity)
        and item.model in models
    }
    return next((fitting[variant] for variant in variants_of(run) if variant in fitting), None)
