"""Results as rich tables for the terminal."""

import math
from collections.abc import Container, Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fairchem_piwsl.analysis.error_metrics import TAYLOR, TITLES
from fairchem_piwsl.dynamics.stability import mean_time


def number(value: float | None, digits: int = 4) -> str:
    """`value` with some significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}"


def interval(estimate: dict[str, float | None]) -> str:
    """The value, and below it `[low, high]` where there is an interval."""
    value, low, high = number(estimate["value"]), number(estimate["low"], 3), number(estimate["high"], 3)
    return value if low == "-" else f"{value}\n[{low}, {high}]"


def kind_of(quantity: str) -> str:
    """A quantity of a report without its condition, which follows an @."""
    return quantity.partition("@")[0]


def change_of(change: float | None, baseline: str | None) -> str:
    """`-12.3%`, with the baseline where it has others beside it, which its settings in brackets tell."""
    if change is None:
        return ""
    return f"{change:+.1%}" + (f" against {baseline}" if "(" in str(baseline) else "")


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], left: Container[int] = (0, 1)
) -> str:
    """A table of markdown; columns other than those numbered `left` are aligned to the right."""
    rule = "|".join("---" if number in left else "---:" for number in range(len(headings)))
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [f"| {' | '.join(cells)} |\n" for cells in (headings, *escaped)]
    return "".join([lines[0], f"|{rule}|\n", *lines[1:]])


def evaluation_tables(result: dict[str, Any]) -> list[Table | Text]:
    """One table for all models, one for each model's groups, and a warning."""
    summary = Table(
        title=f"{result['data']}: {result['structures']} structures, {result['atoms']} atoms",
        caption=f"[{result['confidence']:.0%} bootstrap interval over structures]",
    )
    fill = _row_for_each_error if len(result["models"]) <= 2 else _row_for_each_model
    fill(summary, result)
    groups = [_group_table(result, model) for model in result["models"] if model["groups"]]
    return [summary, *groups, *([Text(result["warning"], style="yellow")] if result["warning"] else [])]


def _row_for_each_error(table: Table, result: dict[str, Any]) -> None:
    for heading in ("error", "unit"):
        table.add_column(heading, no_wrap=True)
    for model in result["models"]:
        table.add_column(model["name"], justify="right")
    for metric, title in TITLES.items():
        cells = [interval(model["metrics"][metric]) for model in result["models"]]
        table.add_row(title, result["units"][metric], *cells)


def _row_for_each_model(table: Table, result: dict[str, Any]) -> None:
    """Without the errors per atom, which the JSON has."""
    table.add_column("model", no_wrap=True)
    chosen = [metric for metric in TITLES if "per_atom" not in metric]
    for metric in chosen:
        unit = result["units"][metric].replace("Angstrom", "Å")
        table.add_column(f"{TITLES[metric]}\n{unit}", justify="right", min_width=len(unit))
    for model in result["models"]:
        table.add_row(model["name"], *(interval(model["metrics"][metric]) for metric in chosen))


def _group_table(result: dict[str, Any], model: dict[str, Any]) -> Table:
    units = result["units"]
    table = Table(
        title=f"{model['name']}, by group",
        caption=f"energy in {units['energy_mae']}, forces in {units['forces_mae']}",
    )
    table.add_column("group")
    table.add_column("number", justify="right")
    chosen = [metric for metric in TITLES if metric != "energy_per_atom_mae"]
    for metric in chosen:
        table.add_column(TITLES[metric], justify="right")
    for name, values in model["groups"].items():
        cells = [number(values[metric]["value"]) for metric in chosen]
        table.add_row(name, str(values["structures"]), *cells)
    return table


def consistency_tables(result: dict[str, Any]) -> list[Table | str]:
    """All measures of `piwsl consistency` in one table, and what they mean."""
    units, net, curl = result["units"], result["net"], result["curl"]
    sample = f"{result['structures']} structures, {result['precision']}"
    table = Table(title=f"{result['model']} on {result['data']}: {sample}")
    for heading in ("measure", "value", "unit"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    last = number(result["displacements"][-1], 2)
    for key, label in TAYLOR.items():
        table.add_row(
            f"{label}: residual at |dr| = {last}", number(result["residuals"][key][-1]), units["energy"]
        )
        table.add_row(f"{label}: slope in log |dr|", number(result["slopes"][key], 3), "")
    mismatch = result["force_mismatch"]
    table.add_row("force against -dE/dr, RMSE", number(mismatch["rmse"]), units["force"])
    table.add_row("force against -dE/dr, relative", number(mismatch["relative"]), "")
    table.add_row("directions with a jump of E within 0.002 Angstrom", number(mismatch["jumps"], 2), "")
    table.add_row("curl per atom, mean", number(curl["per_atom_mean"]), units["curl"])
    table.add_row("asymmetry of the force Jacobian", number(curl["asymmetry"]), "")
    if net:
        table.add_row("net force of a molecule, RMS", number(net["force_rms"]), units["force"])
        table.add_row("net torque of a molecule, RMS", number(net["torque_rms"]), units["torque"])
    return [table, result["verdict"]]


def profile_tables(result: dict[str, Any]) -> list[Table]:
    """One row for each curve of `piwsl profile`."""
    units = result["units"]
    table = Table(
        title=f"{result['formula']}, bond {'-'.join(map(str, result['bond']))}, "
        f"{len(result['moving_atoms'])} atoms move",
        caption=f"lengths in Angstrom, energy in {units['energy']}, force in {units['force']}",
    )
    table.add_column("model", no_wrap=True)
    headings = ("minimum at", "local minima", "force - slope, RMSE", "energy RMSE", "force RMSE")
    for heading in headings[: 5 if result["reference"] else 3]:
        table.add_column(heading, justify="right")
    for name, curve in result["curves"].items():
        cells = [
            number(curve["minimum"]),
            ", ".join(f"{length:.2f}" for length in curve["local_minima"]) or "-",
            number(curve["force_against_slope_rmse"]),
        ]
        if name == result["reference"]:
            cells += ["-", "-"]
        elif result["reference"]:
            cells += [number(curve["energy_rmse"]), number(curve["force_rmse"])]
        table.add_row(name, *cells)
    return [table]


def md_tables(result: dict[str, Any]) -> list[Table]:
    """One row for each seed of `piwsl md`."""
    summary, criterion = result["summary"], result["criterion"]
    table = Table(
        title=f"{result['model']}, {result['formula']}, {result['settings']['ensemble'].upper()}",
        caption=f"{mean_time(summary)}; failure: "
        f"{criterion['name']} departs by more than {criterion['threshold']} {criterion['unit']}; "
        f"time in ps, drift of the total energy in {result['units']['drift']}, its spread in "
        f"{result['units']['energy_std']}, mean temperature T in K",
    )
    for heading in ("seed", "time", "failed", "drift", "spread", "T", "ns/day"):
        table.add_column(heading, justify="right")
    for run in result["runs"]:
        measured = ("drift", "energy_std", "temperature", "ns_per_day")
        cells = [number(run[key]) for key in measured]
        table.add_row(str(run["seed"]), number(run["time"]), run["reason"] or "no", *cells)
    return [table]


def report_tables(result: dict[str, Any]) -> list[Table]:
    """The main quantities of each section of `piwsl report`; the page has all of them."""
    tables = []
    for section in result["sections"]:
        caption = "change: of the mean; p: paired t-test over seeds"
        table = Table(title=section["title"], caption="\n".join([caption, *section["notes"]]))
        for heading in ("quantity", "method", "runs", "mean", "spread", "change", "p"):
            table.add_column(heading, justify="left" if heading in ("quantity", "method") else "right")
        previous = None
        for entry in _headlines(section["entries"]):
            name, unit = result["names"][entry["quantity"]]
            first = entry["quantity"] != previous
            previous = entry["quantity"]
            table.add_row(
                (f"{name}\n({unit})" if unit else name) if first else "",
                entry["method"],
                str(len(entry["values"])),
                number(entry["mean"]),
                number(entry["std"], 2),
                change_of(entry["change"], entry["baseline"]) or "-",
                number(entry["p"], 2),
            )
        tables.append(table)
    return tables


def _headlines(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries without what another one says as well: MAE beside RMSE, validation beside test."""
    there = {kind_of(entry["quantity"]) for entry in entries}
    hidden = {q for q in there if "mae" in q and q.replace("mae", "rmse") in there} | {"energy_per_atom_rmse"}
    if there & {"energy_rmse", "forces_rmse"}:
        hidden |= {kind for kind in there if kind.endswith("_best")}
    return [entry for entry in entries if kind_of(entry["quantity"]) not in hidden]
