"""Every command against inputs that cannot work; the tables are in `tests/malformed/`."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import pytest
from helpers_malformed import Case, refusal

ROOMS = sorted(path.stem for path in (Path(__file__).parent / "malformed").glob("*.py"))
CASES: list[tuple[str, Case]] = [
    (room, case) for room in ROOMS for case in importlib.import_module(f"malformed.{room}").CASES
]


@pytest.mark.parametrize(("room", "case"), CASES, ids=[f"{room}-{case.name}" for room, case in CASES])
def test_refused_in_one_sentence(room, case, tmp_path, monkeypatch, capsys, request):
    monkeypatch.chdir(tmp_path)
    paths = {name: request.getfixturevalue(name) for name in case.uses}
    refusal(case, tmp_path, paths, capsys)


def test_names_are_unique():
    twice = [key for key, n in Counter((room, case.name) for room, case in CASES).items() if n > 1]
    assert not twice
