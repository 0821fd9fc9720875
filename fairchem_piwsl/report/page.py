"""The report as one self-contained HTML page, and as markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairchem_piwsl.files import write_text
from fairchem_piwsl.report.html_page import Part, Table, write_html
from fairchem_piwsl.report.printed_results import Printed
from fairchem_piwsl.report.runs import Run
from fairchem_piwsl.report.statistics import Entry, mean_and_spread
from fairchem_piwsl.report.tables import change_of, kind_of, markdown_table

Names = dict[str, tuple[str, str]]
HEADINGS = ("quantity", "method", "runs", "mean ± spread", "change", "p", "paper")
NOTES = (
    "Mean ± standard deviation over seeds. Change: of the mean, relative to the baseline (of several, to the one "
    "with the closest settings). p: paired t-test over the seeds that both have; with few seeds it is a weak test, "
    "and every row is a test of its own. Paper: the printed value for this data set, training size, model and "
    "method (its settings may differ from these runs)."
)
# Quantities of which more is better; nothing is said about those in the second set.
MORE_IS_BETTER = {"forces_cosine", "time_to_failure"}
NEUTRAL = {"wall_time", "steps", "pitc_slope"}


@dataclass(frozen=True)
class Section:
    """One data set, training size and model: its comparison, the paper's values, its figures, what to know."""

    title: str
    entries: list[Entry]
    paper: dict[tuple[str, str], Printed]
    equal_time: float | None
    figures: list[Path]
    runs: list[Run]
    notes: list[str]


def write_page(path: Path, title: str, sections: Sequence[Section], names: Names) -> None:
    """Write the HTML page, pictures inside."""
    write_html(path, title, [NOTES], [_part(section, names) for section in sections])


def _part(section: Section, names: Names) -> Part:
    marks = {(row, HEADINGS.index("change")): _judgement(entry) for row, entry in enumerate(section.entries)}
    return Part(
        section.title,
        Table(HEADINGS, list(_rows(section, names)), grouped=True, marks=marks),
        section.notes,
        {figure.stem: figure.read_bytes() for figure in section.figures},
        {f"{len(section.runs)} runs": _runs(section, names)},
    )


def write_markdown(path: Path, title: str, sections: Sequence[Section], names: Names) -> None:
    """Write the tables as markdown."""
    lines = [f"# {title}", "", NOTES, ""]
    for section in sections:
        table = markdown_table(HEADINGS, _rows(section, names))
        lines += [f"## {section.title}", "", table, *(f"{note}\n" for note in section.notes)]
    write_text(path, "\n".join(lines))


def _rows(section: Section, names: Names) -> Iterator[list[str]]:
    """The cells of each entry; only the first of a quantity names it."""
    previous = None
    for entry in section.entries:
        name, unit = names[entry.quantity]
        item = section.paper.get((entry.quantity, entry.method))
        printed = f"{item.value:g}" + (f" ± {item.std:g}" if item.std else "") if item else ""
        yield [
            "" if entry.quantity == previous else f"{name} ({unit})" if unit else name,
            entry.method,
            str(len(entry.values)),
            mean_and_spread(entry.values),
            change_of(entry.change, entry.baseline),
            "" if entry.p is None else f"{entry.p:.2g}",
            f"{printed} (Table {item.table})" if item else "",
        ]
        previous = entry.quantity


def _judgement(entry: Entry) -> str:
    """ "better" or "worse" where a paired test says so at the 5 % level."""
    kind = kind_of(entry.quantity)
    if entry.change is None or entry.p is None or entry.p > 0.05 or kind in NEUTRAL:
        return ""
    return "better" if (entry.change > 0) == (kind in MORE_IS_BETTER) else "worse"


def _runs(section: Section, names: Names) -> Table:
    columns = ("energy_rmse", "forces_rmse", "wall_time", "steps")
    shown = [q for q in names if kind_of(q) in columns and any(q in run.values for run in section.runs)]
    head = ["run", "method", "seed", *(f"{names[q][0]} {names[q][1] and f'({names[q][1]})'}" for q in shown)]
    rows = []
    for run in section.runs:
        values = [f"{run.values[q]:.4g}" if q in run.values else "" for q in shown]
        rows.append([str(run.checkpoint.parent), run.method, str(run.seed), *values])
    return Table(head, rows)
