"""Numbers in the documentation are those of docs/results/*.json; and how both come to be."""

from __future__ import annotations

import json
import re

import paper
import publish
import pytest
from helpers_results import comparison
from recipes.results_file import read_results

RESULTS = sorted((publish.DOCS / "results").glob("*.json"))


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


def test_nothing_is_published_of_a_recipe_without_finished_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "PUBLISHED", tmp_path / "docs")
    recipe = paper.read_recipe(paper.RECIPES / "self_tuning.yml")
    planned = recipe.plan(paper.CONFIGS, small=True)
    with pytest.raises(paper.UserError, match="holds no finished run of self_tuning"):
        paper.write_results(recipe, "smoke", planned, tmp_path / "runs", publish=True)
    assert not (tmp_path / "docs").exists()
