"""One self-contained HTML page, pictures inside, for the reports of trainings and of sweeps."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment

from fairchem_piwsl.files import write_text

TEMPLATE = """
{%- macro show(table) %}
<table><tr>{% for name in table.head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.rows -%}
{%- set line = loop.index0 -%}
<tr{% if table.grouped and row[0] %} class="first"{% endif %}>
{%- for cell in row %}{% set mark = table.marks.get((line, loop.index0)) -%}
<td{% if mark %} class="{{ mark }}"{% endif %}>{{ cell }}</td>{% endfor -%}
</tr>
{% endfor %}</table>
{%- endmacro -%}
<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
td { white-space: nowrap; } td:first-child { white-space: normal; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
tr.first td { border-top: 2px solid #bbb; }
td.better { color: #00694c; } td.worse { color: #a33c00; }
img { max-width: 100%; } .note { color: #555; font-size: 13px; }
</style></head><body><h1>{{ title }}</h1>
{% for note in notes %}<p class="note">{{ note }}</p>
{% endfor %}
{%- for part in parts %}<h2>{{ part.title }}</h2>
{%- if part.table %}{{ show(part.table) }}{% endif %}
{% for note in part.notes %}<p class="note">{{ note }}</p>
{% endfor %}
{%- for name, image in part.images.items() %}<p><img alt="{{ name }}" src="data:image/png;base64,{{ image | base64 }}"></p>
{% endfor %}
{%- for summary, table in part.folded.items() %}<details><summary>{{ summary }}</summary>{{ show(table) }}</details>
{% endfor %}
{%- endfor %}</body></html>
"""


@dataclass(frozen=True)
class Table:
    """Texts in rows; where `grouped`, a row whose first cell is not empty opens a group."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    grouped: bool = False
    #: row and column, from 0 -> "better" or "worse"
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A heading with what stands below it, in this order."""

    title: str
    table: Table | None = None
    notes: Sequence[str] = ()
    #: name -> PNG
    images: Mapping[str, bytes] = field(default_factory=dict)
    #: summary -> table that opens on a click
    folded: Mapping[str, Table] = field(default_factory=dict)


def write_html(path: Path, title: str, notes: Sequence[str], parts: Sequence[Part]) -> Path:
    """Write the page; no text in it can become markup."""
    environment = Environment(autoescape=True)
    environment.filters["base64"] = lambda image: base64.b64encode(image).decode("ascii")
    return write_text(path, environment.from_string(TEMPLATE).render(title=title, notes=notes, parts=parts))
