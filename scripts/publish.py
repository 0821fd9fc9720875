"""Write the tables and marked changes of the documentation anew from docs/results/*.json.

    python scripts/publish.py

A table stands in a page between `<!-- results: RECIPE TABLE PATTERN -->` and `<!-- end of results -->`: RECIPE is a file
of docs/results, which `python scripts/paper.py RECIPE --publish` writes, a demo's results.json, or step_times.json of
scripts/bench_models.py; TABLE is comparison, short, gains, glance, equal_time, hand_chosen, tests, sizes, worth, grid,
cost or steps; PATTERN, a shell pattern of `<data set>/<model>`, may be left out.
A change within a line stands between `<!-- change: RECIPE DATA/MODEL METHOD energy|forces -->` and `<!-- end of change -->`.
"""

import re
from pathlib import Path

from recipes.results_file import read_results
from recipes.results_tables import fill

from fairchem_piwsl.files import errors_as_sentences, write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = (*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md")


def published(page: Path, docs: Path = DOCS) -> str:
    """The text of a page with its tables as the results say."""
    return fill(page.read_text(), lambda recipe: read_results(docs / "results" / f"{recipe}.json"))


def shown_pictures() -> set[str]:
    """The files of docs/images that a page shows."""
    return {name for page in PAGES for name in re.findall(r"images/(\w+\.png)", page.read_text())}


def main() -> None:
    for page in PAGES:
        text = published(page)
        if text != page.read_text():
            write_text(page, text)
            print(page.relative_to(DOCS.parent))


if __name__ == "__main__":
    with errors_as_sentences("publish.py"):
        main()
