"""The rules of docs/architecture.md, and that the page shows every module."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fairchem_piwsl"
MODULES = sorted(
    str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")
)


def imported(module: str) -> set[str]:
    """Top-level packages that a module imports, its own package by the full dotted name."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name if name.startswith("fairchem_piwsl") else name.split(".")[0] for name in names}
    return found


def test_the_page_shows_every_module_and_nothing_else() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    shown = set(re.findall(r"^\| `([\w/]+\.py)` \|", page, flags=re.MULTILINE))
    assert shown == set(MODULES)


def test_at_most_twelve_loose_modules() -> None:
    assert sum("/" not in module for module in MODULES) <= 12


@pytest.mark.parametrize("module", MODULES)
def test_files_hold_one_idea(module: str) -> None:
    assert len((PACKAGE / module).read_text().splitlines()) <= 350


def test_no_two_rooms_have_files_of_one_name() -> None:
    names = Counter(Path(module).name for module in MODULES)
    assert [name for name, number in names.items() if number > 1] == []


@pytest.mark.parametrize("module", ["losses.py", "taylor.py", "perturbations.py", "settings.py"])
def test_the_paper_knows_no_version_of_fairchem(module: str) -> None:
    used = imported(module)
    assert not {name for name in used if name.split(".")[0] in ("fairchem", "torch_geometric")}
    rooms = {name.split(".")[1] for name in used if name.startswith("fairchem_piwsl.")}
    assert rooms <= {"losses", "taylor", "perturbations", "settings", "errors", "kinds", "units"}


def test_what_is_not_repeated_with_current_torch_knows_none() -> None:
    """Neither the files that `make test-current` leaves out nor their helpers."""
    names = re.findall(r"^WITHOUT_TORCH = (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    files = [ROOT / name for name in names[0].split()]
    helpers = {name for file in files for name in imported(str(file)) if name.startswith("helpers_")}
    for file in [*files, *(ROOT / "tests" / f"{name}.py" for name in sorted(helpers))]:
        used = imported(str(file))
        assert not used & {"conftest", "fairchem", "lmdb", "numpy", "torch", "torch_geometric"}, file
        assert not {n for n in used if re.match(r"fairchem_piwsl\.(trainer|training|models|analysis)", n)}, (
            file
        )


def test_the_rules_name_whoever_knows_fairchem() -> None:
    first_rule = (ROOT / "docs" / "architecture.md").read_text().partition("## Rules")[2].split("* ")[1]
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", first_rule))
    knowing = [module for module in MODULES if "fairchem" in imported(module)]
    assert [m for m in knowing if not {m, f"{m.split('/')[0]}/"} & named] == []


@pytest.mark.parametrize(("room", "other"), [("training/", "models"), ("analysis/", "report")])
def test_rooms_that_know_nothing_of_another(room: str, other: str) -> None:
    """Trainings know no model by name, analyses no report that is made of them."""
    modules = [module for module in MODULES if module.startswith(room)]
    assert [m for m in modules if any(n.startswith(f"fairchem_piwsl.{other}") for n in imported(m))] == []


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("upstream/")])
def test_patches_live_in_upstream(module: str) -> None:
    """No module elsewhere sets an attribute of a module or class that it imported from fairchem."""
    tree = ast.parse((PACKAGE / module).read_text())
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fairchem"
        for alias in node.names
    }
    targets = [
        target
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute)
    ]
    assert not [t.attr for t in targets if isinstance(t.value, ast.Name) and t.value.id in names]
    assert "unittest" not in imported(module)
