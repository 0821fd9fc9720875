"""Write configs/s2ef/cells and configs/s2ef/tables, and their lists in docs/configs.md.

    python scripts/make_configs.py

A config here is a list of includes: data sets, models, methods and cases are files of their own, written by
hand. This script only says which of them belong together.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

TITLES = {
    "equiformer_v2": "Equiformer v2",
    "escn": "eSCN",
    "painn": "PaiNN",
    "spinconv": "SpinConv",
    "schnet": "SchNet",
}
MACE = {"mace": "MACE", "mace_off": "MACE-OFF", "mace_mp": "MACE-MP"}

#: case of each data set for the models in the order of TITLES
TABLE_A3 = {
    "ani1x_50": "ACBAA",
    "ani1x_100": "ACADA",
    "ani1x_1000": "DDDBB",
    "ani1x_10000": "GCBCC",
    "tio2_100": "AAAAH",
    "tio2_1000": "GACAC",
    "rmd17_aspirin_100": "EBFDA",
    "rmd17_aspirin_1000": "BBBBB",
    "rmd17_benzene_100": "BBBBB",
    "rmd17_benzene_1000": "GBBBB",
    "rmd17_naphthalene_100": "GBBBB",
    "rmd17_naphthalene_1000": "GBBBB",
    "lmnto_100": "BBBAB",
    "lmnto_1000": "BABBB",
}
PREFIXES = {
    "ani1x": "ANI-1x",
    "tio2": "TiO2",
    "lmnto": "LMNTO",
    "rmd17": "rMD17",
    "md22": "MD22",
    "md17_ccsd_t": "MD17-CCSD(T)",
}
METHODS = ("baseline", "noisy_nodes", "weak_label", "piwsl")

#: SchNet's batch on TiO2 is 32 (Table A1); epochs that give Table A2's 10,000 steps with it
SCHNET_TIO2 = {
    "tio2_100": {"batch_size": 32, "max_epochs": 2500},
    "tio2_1000": {"batch_size": 32, "max_epochs": 313},
}

ENERGY_LOSS_ALONE = [{"energy": {"fn": "mae", "coefficient": 1}}]
ENERGY_LOSS_ALONE_4 = [{"energy": {"fn": "mae", "coefficient": 4}}]


@dataclass(frozen=True)
class Run:
    """One config: the files it includes and what it sets itself."""

    path: str
    title: str
    includes: list[str]
    optim: dict[str, Any] = field(default_factory=dict)
    loss_functions: list[dict[str, Any]] | None = None
    element_references: str | None = None

    def text(self) -> str:
        lines = [f"# {self.title}", "includes:"]
        up = "../" * (len(Path(self.path).parts) - 1)
        lines += [f"  - {up}{name}" for name in self.includes]
        if self.element_references:
            references = {"element_references": {"energy": {"file": self.element_references}}}
            lines += ["", *_block({"dataset": {"train": {"transforms": references}}}, "")]
        if self.loss_functions:
            lines += ["", "loss_functions:"]
            for term in self.loss_functions:
                (target, settings), *_ = term.items()
                lines.append(f"  - {target}: {_flow(settings)}")
        if self.optim:
            lines += ["", "optim:", *_block(self.optim, "  ")]
        return "\n".join(lines) + "\n"


def cells() -> Iterator[Run]:
    """Every cell of Table A3 with every method."""
    for dataset, cases in TABLE_A3.items():
        for (model, name), case in zip(TITLES.items(), cases, strict=True):
            for method in METHODS:
                chosen = f"cases/{case}.yml" if method == "piwsl" else f"methods/{method}.yml"
                yield Run(
                    f"cells/{dataset}/{model}_{method}.yml",
                    f"{_spoken(dataset)}, {name}, {_method(method, case)}.",
                    _includes(dataset, model, chosen),
                    SCHNET_TIO2.get(dataset, {}) if model == "schnet" else {},
                )


def tables() -> Iterator[Run]:
    """The settings of the paper's other tables; names of models and variants as in its tables of results."""
    yield from _no_forces("3_no_force_labels", "painn", ("direct", "gradient"))
    yield from _no_forces("3_no_force_labels", "equiformer_v2", ("direct", "gradient"))
    for model in ("painn", "equiformer_v2"):
        # Table A3's case D without one of its terms
        yield _ani1x("4_ablation", model, "pitc", _pitc(1.2, 0.0, 0.025))
        yield _ani1x("4_ablation", model, "pisc", _pitc(0.0, 0.01, 0.025))
        yield _ani1x("5_weak_label", model, "pitc", _pitc(1.0, 0.0, 0.01))
        yield _ani1x(
            "6_adversarial", model, "adversarial", _pitc(1.2, 0.01, 0.025, perturbation="adversarial")
        )
    for dataset, case in (("tio2_100", "H"), ("tio2_1000", "C")):
        for method in ("baseline", "noisy_nodes", "piwsl"):
            what = f"{_spoken(dataset)}, SchNet, {_method(method, case)}, batches of 4."
            yield Run(
                f"tables/A5_tio2_batch4/{dataset}_schnet_{method}.yml",
                what,
                _includes(
                    dataset, "schnet", f"cases/{case}.yml" if method == "piwsl" else f"methods/{method}.yml"
                ),
            )
    for dataset in ("tio2_200", "tio2_500"):
        yield Run(
            f"tables/A6_tio2_batch4/{dataset}_schnet_baseline.yml",
            f"{_spoken(dataset)}, SchNet, baseline, batches of 4.",
            _includes(dataset, "schnet", "methods/baseline.yml"),
        )
    for number in (1, 2, 3):
        pisc = _pitc(0.1, 0.001, 0.01, pisc_case=number)
        yield _ani1x("A10_pisc_cases", "painn", f"pisc_case{number}", pisc)
    for method, chosen in (("baseline", "methods/baseline.yml"), ("piwsl", "cases/F.yml")):
        yield Run(
            f"tables/A11_energy_profile/rmd17_aspirin_200_painn_{method}.yml",
            f"{_spoken('rmd17_aspirin_200')}, PaiNN, {_method(method)}.",
            _includes("rmd17_aspirin_200", "painn", chosen),
        )
    for loss in ("mse", "mae", "relu"):
        yield _ani1x("A12_point_losses", "painn", f"pitc_{loss}", _pitc(0.1, 0.0, 0.01, point_loss=loss))
    for eps in (0.0005, 0.005, 0.05):
        yield _ani1x("A13_eps_max", "painn", f"pitc_eps{eps}", _pitc(0.1, 0.0, eps))
    for percent in (10, 20, 50, 75, 90, 100):
        fraction = _pitc(0.1, 0.0, 0.01, fraction=percent / 100)
        yield _ani1x("A14_fraction", "painn", f"pitc_fraction{percent}", fraction)
    yield _ani1x("A15_80000_steps", "painn", "baseline", _pitc(0.0, 0.0, None), max_epochs=480)
    yield _ani1x("A15_80000_steps", "painn", "piwsl", _pitc(1.2, 0.01, 0.025), max_epochs=480)
    for model in ("painn_gradient", "equiformer_v2_gradient"):
        yield _ani1x("A16_gradient_forces", model, "baseline", _pitc(0.0, 0.0, None))
        yield _ani1x("A16_gradient_forces", model, "piwsl", _pitc(0.1, 0.01, 0.01))
        yield _ani1x("A16_gradient_forces", model, "weak_label", {"c_wl": 0.1, "eps_max": 0.01})
    for model in ("painn", "equiformer_v2"):
        predicted = {"c_wl": 1.0, "eps_max": 0.01, "wl_forces": "predicted"}
        yield _ani1x("A17_weak_label", model, "weak_label_predicted_forces", predicted)
        for variant, extra in (
            ("weak_label", {}),
            ("weak_label_predicted_forces", {"wl_forces": "predicted"}),
        ):
            weak_label = {"c_wl": 0.1, "eps_max": 0.01, **extra}
            yield _without_forces("A17_weak_label", model, f"no_forces_{model}_{variant}", weak_label)
    yield from _beyond()


def _beyond() -> Iterator[Run]:
    """Settings that are in none of the paper's tables."""
    for model, name in (TITLES | {"mace": MACE["mace"]}).items():
        yield Run(
            f"tables/second_order/rmd17_aspirin_100_{model}.yml",
            f"{_spoken('rmd17_aspirin_100')}, {name}, PITC of second order with a large step.",
            _includes("rmd17_aspirin_100", model, "methods/second_order.yml"),
        )
    for model in ("painn", "equiformer_v2"):
        second_order = _pitc(1.2, 0.01, 0.025, k_2nd=0.5)
        yield _ani1x("second_order", f"ani1x_1000_{model}", "", second_order, model=model)
    for model in TITLES:
        yield from _baseline_and_piwsl("md22", "md22_Ac-Ala3-NHMe_1000", model)
    for model in ("mace_off", "mace_mp"):
        file = f"data/md17_ccsd_t_aspirin_100/element_references_{model}.npz"
        for run in _baseline_and_piwsl("mace_fine_tuning", "md17_ccsd_t_aspirin_100", model):
            yield replace(run, element_references=file)
    yield from _baseline_and_piwsl("mace", "rmd17_aspirin_100", "mace")


def _baseline_and_piwsl(table: str, dataset: str, model: str) -> Iterator[Run]:
    """A data set or model that is not in Table A3, with the case that the table has most often."""
    for method, chosen in (("baseline", "methods/baseline.yml"), ("piwsl", "cases/B.yml")):
        yield Run(
            f"tables/{table}/{dataset}_{model}_{method}.yml",
            f"{_spoken(dataset)}, {_model(model)}, {_method(method, 'B')}.",
            _includes(dataset, model, chosen),
        )


def _ani1x(
    table: str, stem: str, variant: str, piwsl: dict[str, Any], model: str | None = None, **optim: Any
) -> Run:
    """A variant on ANI-1x with 1,000 structures."""
    return Run(
        f"tables/{table}/{'_'.join(part for part in (stem, variant) if part)}.yml",
        f"{_heading(table)}: {_spoken('ani1x_1000')}, {_model(model or stem)}{', ' if variant else ''}"
        f"{variant.replace('_', ' ')}.",
        _includes("ani1x_1000", model or stem),
        {**optim, "piwsl": piwsl},
    )


def _without_forces(table: str, model: str, stem: str, piwsl: dict[str, Any]) -> Run:
    """Energies alone in the supervised loss; the force labels of the validation set still give metrics."""
    return Run(
        f"tables/{table}/{stem}.yml",
        f"{_heading(table)}: {_spoken('ani1x_1000')}, {_model(model)}, energies alone: "
        f"{', '.join(f'{key} {value}' for key, value in piwsl.items() if key != 'eps_max')}.",
        _includes("ani1x_1000", model),
        {"piwsl": piwsl},
        ENERGY_LOSS_ALONE_4 if model.startswith("equiformer") else ENERGY_LOSS_ALONE,
    )


def _no_forces(table: str, model: str, kinds: tuple[str, ...]) -> Iterator[Run]:
    for kind in kinds:
        inner = model if kind == "direct" else f"{model}_{kind}"
        for method, piwsl in (("baseline", _pitc(0.0, 0.0, None)), ("piwsl", _pitc(0.1, 0.0, 0.01))):
            yield _without_forces(table, inner, f"{model}_{kind}_{method}", piwsl)


def _pitc(c_pitc: float, c_pisc: float, eps_max: float | None, **more: Any) -> dict[str, Any]:
    size = {} if eps_max is None else {"eps_max": eps_max}
    return {"c_pitc": c_pitc, "c_pisc": c_pisc, **size, **more}


def _includes(dataset: str, model: str, *method: str) -> list[str]:
    return ["base.yml", f"datasets/{dataset}.yml", f"models/{model}.yml", *method]


def _model(name: str) -> str:
    base = name.removesuffix("_gradient")
    return (TITLES | MACE)[base] + (" with gradient forces" if base != name else "")


def _method(method: str, case: str = "") -> str:
    if method == "piwsl":
        return f"PIWSL, case {case}" if case else "PIWSL"
    return method.replace("_", " ")


def _heading(table: str) -> str:
    number = table.split("_")[0]
    return "Second order" if number == "second" else f"Table {number}"


def _spoken(dataset: str) -> str:
    name, _, count = dataset.rpartition("_")
    for prefix, title in PREFIXES.items():
        if name.startswith(prefix):
            return f"{title}{name.removeprefix(prefix).replace('_', ' ')} {int(count):,}"
    raise KeyError(dataset)


def _block(settings: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _block(value, indent + "  ")
        else:
            yield f"{indent}{key}: {value}"


def _flow(settings: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in settings.items()) + "}"


# ------------------------------------------------------------------------------------------ docs


def cell_list() -> str:
    """Table A3 in Markdown, each case a link to its config."""
    lines = ["| `cells/` | " + " | ".join(TITLES.values()) + " |", "|---" * (len(TITLES) + 1) + "|"]
    for dataset, cases in TABLE_A3.items():
        row = [
            f"[{case}](../configs/s2ef/cells/{dataset}/{model}_piwsl.yml)"
            for model, case in zip(TITLES, cases, strict=True)
        ]
        lines.append(f"| `{dataset}` | " + " | ".join(row) + " |")
    return "\n".join(lines)


def table_list() -> str:
    """The files of each folder below tables/ in Markdown."""
    folders: dict[str, list[str]] = {}
    for run in tables():
        folder, name = run.path.removeprefix("tables/").split("/")
        folders.setdefault(folder, []).append(Path(name).stem)
    lines = ["| `tables/` | files |", "|---|---|"]
    for folder, names in folders.items():
        lines.append(
            f"| [`{folder}`](../configs/s2ef/tables/{folder}) | " + ", ".join(f"`{n}`" for n in names) + " |"
        )
    return "\n".join(lines)


def with_lists(page: str) -> str:
    """docs/configs.md with its two generated lists brought up to date."""
    for name, text in (("cells", cell_list()), ("tables", table_list())):
        start = f"<!-- {name}: scripts/make_configs.py -->\n"
        before, found, rest = page.partition(start)
        _, end, after = rest.partition("<!-- end -->")
        if not found or not end:
            raise ValueError(f"docs/configs.md has no place for the list of {name}.")
        page = before + start + text + "\n" + end + after
    return page


def files() -> dict[str, str]:
    """Text of every generated config by its path below configs/s2ef."""
    return {run.path: run.text() for run in (*cells(), *tables())}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    configs = ROOT / "configs" / "s2ef"
    for folder in ("cells", "tables"):
        shutil.rmtree(configs / folder, ignore_errors=True)
    for path, text in files().items():
        (configs / path).parent.mkdir(parents=True, exist_ok=True)
        (configs / path).write_text(text, encoding="utf-8")
    page = ROOT / "docs" / "configs.md"
    page.write_text(with_lists(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{len(files())} configs in {configs.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
