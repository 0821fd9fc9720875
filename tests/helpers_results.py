"""Results of recipes with made-up numbers, in the layout of docs/results/*.json."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np


def made_up_run(
    data: str, model: str, method: str, seed: int, energy: float, forces: float, **more: Any
) -> dict[str, Any]:
    """One run; `more` replaces or adds entries."""
    return {
        "data": data,
        "trained_on": data,
        "model": model,
        "method": method,
        "length": 1.0,
        "settings": {},
        "seed": seed,
        "n_train": 100,
        "steps": 3000,
        "batch_size": 8,
        "train_seconds": 120.0,
        "structures": 1000,
        "errors": {"energy_rmse": energy, "forces_rmse": forces},
        **more,
    }


def results(runs: list[dict[str, Any]], recipe: str = "made_up") -> dict[str, Any]:
    """A results file."""
    return {"recipe": recipe, "title": "Made up", "scale": "smoke", "planned": 1, "runs": runs}


def comparison() -> dict[str, Any]:
    """Data sets and models with baselines, longer ones, and `auto`; three seeds."""
    rng = np.random.default_rng(0)
    methods = {
        "baseline": (1.0, 1.0, 1.0, 100.0),
        "baseline_30": (0.9, 1.05, 1.0, 101.0),
        "second_order": (0.55, 0.99, 1.0, 170.0),
        "auto": (0.5, 0.98, 1.0, 133.0),
        "baseline_longer": (0.95, 0.96, 1.35, 135.0),
        "energies_only_baseline": (1.0, 6.9, 1.0, 100.0),
        "energies_only_auto": (1.01, 6.0, 1.0, 135.0),
    }
    places = {
        ("rmd17_aspirin_100", "painn"): (6.0, 4.2, 0.004),
        ("rmd17_aspirin_100", "escn"): (6.1, 4.1, 0.02),
        ("rmd17_aspirin_100", "mace"): (1.3, 2.5, 0.05),
        ("small_molecules_900", "painn"): (10.0, 5.6, 0.004),
        ("tio2_100", "painn"): (42.0, 6.2, 0.01),
    }
    runs = []
    for ((data, model), (e, f, cost)), seed in itertools.product(places.items(), range(3)):
        for method, (de, df, length, seconds) in methods.items():
            if method.startswith("energies_only") and (data, model) != ("rmd17_aspirin_100", "painn"):
                continue
            noise = 1 + 0.03 * rng.normal(size=2)
            more = {"length": length, "step_seconds": seconds * cost / 12}
            more["cost"] = {"seconds": cost, "ns_per_day": 0.04 / cost, "atoms": 21}
            runs.append(made_up_run(data, model, method, seed, e * de * noise[0], f * df * noise[1], **more))
    return results(runs)


def learning_curve() -> dict[str, Any]:
    """Five sizes of two data sets."""
    rng = np.random.default_rng(1)
    runs = []
    for (data, e), n, seed in itertools.product(
        (("rmd17_aspirin", 6.0), ("small_molecules", 12.0)), (50, 100, 200, 400, 900), range(3)
    ):
        for method, factor in {"baseline": 1.0, "baseline_30": 0.9, "auto": 0.55}.items():
            size = (n / 50) ** -0.35 * (1 + 0.04 * rng.normal())
            runs.append(
                made_up_run(f"{data}_{n}", "painn", method, seed, e * factor * size, 5 * size, n_train=n)
            )
    return results(runs)


def grid() -> dict[str, Any]:
    """c_pitc x eps_max for two orders, and where `auto` ended."""
    runs = []
    for data, k, c, eps in itertools.product(
        ("rmd17_aspirin_100", "small_molecules_900"),
        (0, 0.5),
        (0.3, 1.2, 5, 20),
        (0.0125, 0.025, 0.05, 0.1, 0.2),
    ):
        settings = {"k_2nd": k, "c_pitc": c, "eps_max": eps}
        best = 0.1 if k else 0.03
        energy = 2.8 + 0.6 * np.log(eps / best) ** 2 + 0.4 * np.log(c / 6) ** 2
        runs.append(
            made_up_run(data, "painn", f"pitc_{k}_{c}_{eps}", 0, energy, 4 + 0.1 * c * eps, settings=settings)
        )
    for data in ("rmd17_aspirin_100", "small_molecules_900"):
        decided = {"weight_pitc": 12.0, "eps_max": 0.08, "every_n_steps": 3}
        runs.append(made_up_run(data, "painn", "auto", 0, 2.9, 4.1, decided=decided))
    return results(runs)


def extrapolation() -> dict[str, Any]:
    """Four temperatures, three models."""
    rng = np.random.default_rng(2)
    runs = []
    for model, method, seed in itertools.product(
        ("painn", "painn_gradient", "mace"), ("baseline", "baseline_30", "auto"), range(3)
    ):
        factor = {"baseline": 1.0, "baseline_30": 0.95, "auto": 0.4}[method] * (
            0.3 if model != "painn" else 1
        )
        tests = {
            f"{t} K": {
                "energy_rmse": 4 * factor * (t / 300) ** 2 * (1 + 0.1 * rng.normal()),
                "forces_rmse": 3 * (t / 300) * (1 + 0.03 * rng.normal()),
            }
            for t in (300, 600, 900, 1200)
        }
        runs.append(made_up_run("aspirin_300K", model, method, seed, 4 * factor, 3, tests=tests))
    return results(runs)
