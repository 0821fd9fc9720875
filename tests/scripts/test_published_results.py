"""Numbers in the documentation are those of docs/results/*.json; and how both come to be."""

from __future__ import annotations

import json
import re

import paper
import publish
import pytest
from helpers_results import comparison, made_up_run, results
from recipes.collect import with_published
from recipes.results_file import read_results
from recipes.results_tables import CHANGED
from scipy import stats

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.report.printed_results import printed_values

RESULTS = sorted((publish.DOCS / "results").glob("*.json"))
#: `5.82 ± 0.14 → 2.88 ± 0.12: −51 % [−56, −45] (p 0.02, 5 seeds)` on the page of claims
CHANGE = re.compile(
    r"(?P<before>[\d.]+) ± (?P<spread>[\d.]+) → (?P<after>[\d.]+) ± (?P<spread_after>[\d.]+): "
    r"(?P<percent>\S+ % \[\S+ \S+\])(?: \(p (?P<p>[\d.]+)(?:, (?P<seeds>\d) seeds)?\))?"
)


@pytest.mark.parametrize("page", publish.PAGES, ids=lambda page: page.name)
def test_tables_of_a_page_are_those_of_the_results(page):
    assert publish.published(page) == page.read_text(), "run `python scripts/publish.py`"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_published_results_name_no_machine_and_no_stand_in(path):
    results = read_results(path)
    assert results["recipe"] == path.stem
    assert not re.search(r'"/|\.pt"', path.read_text())
    assert all(run["trained_on"] == run["data"] for run in results["runs"])


def test_another_number_in_a_page_or_in_the_results_is_found(tmp_path):
    results = comparison()
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / "made_up.json"
    file.write_text(json.dumps(results))
    page = tmp_path / "page.md"
    page.write_text("<!-- results: made_up comparison -->\n<!-- end of results -->\n")
    page.write_text(publish.published(page, tmp_path))
    assert publish.published(page, tmp_path) == page.read_text()
    number = re.search(r"\d\.\d\d ±", page.read_text())[0]
    page.write_text(page.read_text().replace(number, "9.99 ±", 1))
    assert publish.published(page, tmp_path) != page.read_text()
    page.write_text(publish.published(page, tmp_path))
    results["runs"][0]["errors"]["energy_rmse"] += 1
    file.write_text(json.dumps(results))
    assert publish.published(page, tmp_path) != page.read_text()


def test_every_picture_is_shown_by_a_page_and_every_shown_one_is_there():
    assert {path.name for path in (publish.DOCS / "images").iterdir()} == publish.shown_pictures()


def test_nothing_is_published_of_a_recipe_without_finished_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "PUBLISHED", tmp_path / "docs")
    recipe = paper.read_recipe(paper.RECIPES / "self_tuning.yml")
    planned = recipe.plan(paper.CONFIGS, small=True)
    with pytest.raises(paper.UserError, match="holds no finished run of self_tuning"):
        paper.write_results(recipe, "smoke", planned, tmp_path / "runs", publish=True)
    assert not (tmp_path / "docs").exists()


def test_publishing_adds_to_what_is_published():
    recipe = paper.read_recipe(paper.RECIPES / "sensitivity.yml")
    planned = recipe.plan(paper.CONFIGS, small=True)
    name, settings = "pitc_k_2nd0_c_pitc1_eps_max0.01", {"k_2nd": 0, "c_pitc": 1, "eps_max": 0.01}
    data = ("rmd17_aspirin_100", "painn")
    published = [
        made_up_run(*data, name, 0, 3.0, 4.0, settings=settings),
        made_up_run(*data, "baseline", 1, 6.0, 4.2),
        made_up_run(*data, "baseline", 0, 6.1, 4.2),
    ]
    new = [made_up_run(*data, "baseline", 0, 5.9, 4.1), made_up_run(*data, "baseline", 2, 5.8, 4.3)]
    found = with_published(results(new), results(published), planned)
    assert found["runs"] == [new[0], published[1], new[1], published[0]]

    for more, changed, message in (
        ({"method": "of_an_older_recipe"}, {}, "no longer has of_an_older_recipe"),
        (
            {"method": "pitc_k_2nd0_c_pitc10_eps_max0.1", "settings": settings},
            {},
            "no longer has pitc_k_2nd0",
        ),
        ({}, {"steps": 26}, "baseline, seed 0: 26 steps with 100 structures of rmd17_aspirin_100"),
        ({}, {"n_train": 60}, "60 structures"),
        ({}, {"trained_on": "aspirin"}, "structures of aspirin do not go with"),
    ):
        older = [*published, made_up_run(*data, "baseline", 3, 6.0, 4.0) | more]
        with pytest.raises(UserError, match=message):
            with_published(results([new[0] | changed]), results(older), planned)
    with pytest.raises(UserError, match="of the scale paper, not smoke"):
        with_published(results(new), results(published) | {"scale": "paper"}, planned)


def test_published_costs_hold_for_new_seeds():
    recipe = paper.read_recipe(paper.RECIPES / "map.yml")
    planned = recipe.plan(paper.CONFIGS, small=True)
    cost = {"seconds": 0.006}
    data = ("rmd17_aspirin_100", "painn")
    published = [
        made_up_run(*data, "baseline", 0, 6.1, 4.2, cost=cost, step_seconds=0.05),
        made_up_run(*data, "auto", 0, 2.4, 4.1, cost=cost, step_seconds=0.07),
    ]
    new = [made_up_run(*data, "auto", 1, 2.3, 4.0), made_up_run("tio2_100", "painn", "auto", 0, 22.0, 6.3)]
    _, old, added, other = with_published(results(new), results(published), planned)["runs"]
    assert (old, added) == (published[1], new[0] | {"cost": cost, "step_seconds": 0.07})
    assert other == new[1]
    again = made_up_run(*data, "auto", 0, 2.2, 4.0)
    _, replaced = with_published(results([again]), results(published), planned)["runs"]
    assert replaced == again | {"cost": cost, "step_seconds": 0.07}


def claims():
    """Rows of the table of claims: the paper's numbers, ours without what `publish.py` writes."""
    lines = (publish.DOCS / "claims.md").read_text().splitlines()
    cells = [line.split("|")[1:-1] for line in lines if line.startswith("| ")][1:]
    return [(paper_cell, CHANGED.sub("", ours)) for _, _, paper_cell, ours in cells]


def percent_with_interval(row):
    """The change and its 95 % interval: of a paired t-test where p is given, else of Welch's."""
    count = int(row["seeds"] or 3)
    before, after = float(row["before"]), float(row["after"])
    variances = [float(row[key]) ** 2 / count for key in ("spread", "spread_after")]
    if row["p"]:
        freedom = count - 1
        error = abs(after - before) / stats.t.isf(float(row["p"]) / 2, freedom)
    else:
        freedom = sum(variances) ** 2 / sum(v**2 / (count - 1) for v in variances)
        error = sum(variances) ** 0.5
    half = stats.t.ppf(0.975, freedom) * error
    mean, low, high = (100 * (after - before + shift) / before for shift in (0, -half, half))
    return f"{mean:+.0f} % [{low:+.0f}, {high:+.0f}]".replace("-", "−")


def test_intervals_of_claims_follow_from_means_and_spreads():
    changes = [found for _, ours in claims() for found in CHANGE.finditer(ours)]
    assert len(changes) > 10
    assert {c[0]: c["percent"] for c in changes} == {c[0]: percent_with_interval(c) for c in changes}


def test_our_numbers_in_claims_stand_in_the_pages_they_are_from():
    pages = "".join(
        (publish.DOCS / name).read_text() for name in ("results.md", "tuning.md", "fine_tuning.md")
    )
    for _, ours in claims():
        means = [
            f"{c[a]} ± {c[b]}"
            for c in CHANGE.finditer(ours)
            for a, b in (("before", "spread"), ("after", "spread_after"))
        ]
        for number in (*means, *re.findall(r"\d+\.\d+", ours)):
            assert number in pages, ours


def test_printed_numbers_in_claims_are_those_of_the_tables_they_name():
    rows = claims()
    assert sum("Table" in cell for cell, _ in rows) > 15
    for cell, _ in rows:
        printed = {v.value for v in printed_values() if v.table in re.findall(r"Table (\w+)", cell)}
        assert {float(number) for number in re.findall(r"\d+\.\d\d\b(?! Å)", cell)} <= printed, cell
