"""Table and figure of scripts/fine_tuning.py."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.ticker import FixedLocator, NullLocator
from recipes.compare_report import errors_and_cost
from rich.table import Table

from fairchem_piwsl.analysis import figures
from fairchem_piwsl.files import write_text
from fairchem_piwsl.report.tables import markdown_table

HEADINGS = (
    *("model", "labels", "training", "seeds"),
    *("energy RMSE, kcal/mol", "change", "forces RMSE, kcal/mol/Å", "change", "training, s"),
)


@dataclass(frozen=True)
class Row:
    """Errors on the test set of one model."""

    model: str
    method: str
    #: energies it was fine-tuned on; None: it was not
    size: int | None
    seed: int
    #: kcal/mol
    energy_rmse: float
    #: kcal/mol/Angstrom, over components
    forces_rmse: float
    #: wall time of fine-tuning
    train_seconds: float


def groups(rows: Sequence[Row]) -> dict[tuple[str, int | None, str], list[Row]]:
    """Rows over seeds by model, size and method, in the order of first appearance."""
    found: dict[tuple[str, int | None, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.model, row.size, row.method), []).append(row)
    return found


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Rows of the table: mean ± standard deviation over seeds, changes against the first method of that size."""
    lines = []
    first: dict[tuple[str, int | None], list[Row]] = {}
    for (model, size, method), members in groups(rows).items():
        reference = first.setdefault((model, size), members)
        tuned = size is not None
        errors, cost = errors_and_cost(members, reference)[:-1], errors_and_cost(members, reference)[-1]
        number = (str(size), method, str(len(members))) if tuned else ("", method, "")
        lines.append((model, *number, *errors, cost if tuned else ""))
    return lines


def table(rows: Sequence[Row], title: str) -> Table:
    """The table for the terminal."""
    rich = Table(title=title, caption="mean ± standard deviation over seeds")
    for number, heading in enumerate(HEADINGS):
        rich.add_column(heading, justify="left" if number in (0, 2) else "right")
    for line in cells(rows):
        rich.add_row(*line)
    return rich


def write_table(rows: Sequence[Row], path: Path) -> None:
    """The table for a page."""
    write_text(path, markdown_table(HEADINGS, cells(rows), left=(0, 2)))


def plot(rows: Sequence[Row], path: Path, title: str) -> Path:
    """Errors against the number of labels, a column for each model: forces above, energies below."""
    models = list(dict.fromkeys(row.model for row in rows))
    by_group = groups(rows)
    quantities = (("forces_rmse", "force RMSE, kcal/mol/Å"), ("energy_rmse", "energy RMSE, kcal/mol"))
    with figures.figure(1.2 + 4.2 * len(models), 6.6) as fig:
        fig.suptitle(title)
        axes = fig.subplots(2, len(models), squeeze=False)
        for column, model in enumerate(models):
            names = list(dict.fromkeys(m for (who, size, m) in by_group if who == model and size))
            for line, (quantity, label) in enumerate(quantities):
                ax = axes[line, column]
                for number, method in enumerate(names):
                    sizes = sorted({s for (who, s, m) in by_group if who == model and m == method and s})
                    values = [[getattr(r, quantity) for r in by_group[model, s, method]] for s in sizes]
                    ax.errorbar(
                        [size * 1.03 ** (2 * number + 1 - len(names)) for size in sizes],  # side by side
                        [statistics.fmean(v) for v in values],
                        yerr=[statistics.stdev(v) if len(v) > 1 else 0.0 for v in values],
                        color=figures.colour(number),
                        marker=figures.marker(number),
                        capsize=3,
                        label=method,
                    )
                for (who, size, method), members in by_group.items():
                    if who == model and size is None:
                        level = getattr(members[0], quantity)
                        ax.axhline(
                            level, color=figures.REFERENCE, linestyle="--", linewidth=1.2, label=method
                        )
                ax.set_xscale("log")
                ax.xaxis.set_major_locator(FixedLocator(sorted({r.size for r in rows if r.size})))
                ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
                ax.xaxis.set_minor_locator(NullLocator())
                ax.set(xlabel="labelled energies", ylabel=label, title=model if line == 0 else "")
                ax.set_ylim(bottom=0)
            axes[0, column].legend()
        return figures.save(fig, path)
