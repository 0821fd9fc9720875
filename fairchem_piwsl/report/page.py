"""The report as one self-contained HTML page, and as markdown."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairchem_piwsl.files import write_text
from fairchem_piwsl.report.statistics import Entry, mean_and_spread
from fairchem_piwsl.report.tables import markdown_table

if TYPE_CHECKING:
    from fairchem_piwsl.report.report import Section

Names = dict[str, tuple[str, str]]
HEADINGS = ("quantity", "method", "runs", "mean ± spread", "change", "p", "paper")
NOTES = (
    "Mean ± standard deviation over seeds. Change: of the mean, relative to the baseline. p: paired t-test over "
    "the seeds that both have; with few seeds it is a weak test, and every row is a test of its own. Paper: the "
    "printed value for this data set, training size, model and method (its settings may differ from these runs)."
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
td { white-space: nowrap; } td:first-child { white-space: normal; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
tr.first td { border-top: 2px solid #bbb; }
td.better { color: #00694c; } td.worse { color: #a33c00; }
img { width: 100%; } .note { color: #555; font-size: 13px; }
"""
# Quantities of which more is better; nothing is said about those in the second set.
MORE_IS_BETTER = {"forces_cosine", "time_to_failure"}
NEUTRAL = {"wall_time", "steps", "pitc_slope"}


def write_page(path: Path, title: str, sections: Sequence[Section], names: Names) -> None:
    """Write the HTML page, pictures inside."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p class='note'>{html.escape(NOTES)}</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts.append(_html_table(section, names))
        if section.equal_time:
            minutes = section.equal_time / 60
            parts.append(f"<p class='note'>Equal wall time: {minutes:.3g} min, which every run reached.</p>")
        for figure in section.figures:
            data = base64.b64encode(figure.read_bytes()).decode("ascii")
            parts.append(f"<p><img alt='{html.escape(figure.stem)}' src='data:image/png;base64,{data}'></p>")
        parts.append(_html_runs(section, names))
    parts.append("</body></html>\n")
    write_text(path, "\n".join(parts))


def write_markdown(path: Path, title: str, sections: Sequence[Section], names: Names) -> None:
    """Write the tables as markdown."""
    lines = [f"# {title}", "", NOTES, ""]
    for section in sections:
        table = markdown_table(HEADINGS, (cells for _, _, cells in _rows(section, names)))
        lines += [f"## {section.title}", "", table]
    write_text(path, "\n".join(lines))


def _rows(section: Section, names: Names) -> Iterator[tuple[Entry, bool, list[str]]]:
    """Each entry, whether it opens a quantity, and its cells."""
    previous = None
    for entry in section.entries:
        first = entry.quantity != previous
        previous = entry.quantity
        name, unit = names[entry.quantity]
        item = section.paper.get((entry.quantity, entry.method))
        printed = f"{item.value:g}" + (f" ± {item.std:g}" if item.std else "") if item else ""
        cells = [
            (f"{name} ({unit})" if unit else name) if first else "",
            entry.method,
            str(len(entry.values)),
            mean_and_spread(entry.values),
            "" if entry.change is None else f"{entry.change:+.1%}",
            "" if entry.p is None else f"{entry.p:.2g}",
            f"{printed} (Table {item.table})" if item else "",
        ]
        yield entry, first, cells


def _html_table(section: Section, names: Names) -> str:
    rows = ["<table><tr>" + "".join(f"<th>{heading}</th>" for heading in HEADINGS) + "</tr>"]
    for entry, first, cells in _rows(section, names):
        shown = [f"<td>{html.escape(cell)}</td>" for cell in cells]
        shown[4] = f"<td class='{_judgement(entry)}'>{html.escape(cells[4])}</td>"
        rows.append(f"<tr{' class=first' if first else ''}>{''.join(shown)}</tr>")
    return "\n".join([*rows, "</table>"])


def _judgement(entry: Entry) -> str:
    """ "better" or "worse" where a paired test says so at the 5 % level."""
    if entry.change is None or entry.p is None or entry.p > 0.05 or _kind(entry) in NEUTRAL:
        return ""
    return "better" if (entry.change > 0) == (_kind(entry) in MORE_IS_BETTER) else "worse"


def _kind(entry: Entry) -> str:
    """Its quantity without the condition."""
    return entry.quantity.partition("@")[0]


def _html_runs(section: Section, names: Names) -> str:
    shown = [
        q
        for q in ("energy_rmse", "forces_rmse", "wall_time", "steps")
        if any(q in r.values for r in section.runs)
    ]
    head = ["run", "method", "seed", *(f"{names[q][0]} {names[q][1] and f'({names[q][1]})'}" for q in shown)]
    rows = ["<tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in head) + "</tr>"]
    for run in section.runs:
        values = [f"{run.values[q]:.4g}" if q in run.values else "" for q in shown]
        cells = [str(run.checkpoint.parent), run.method, str(run.seed), *values]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<details><summary>{len(section.runs)} runs</summary><table>{''.join(rows)}</table></details>"
