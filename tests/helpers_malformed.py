"""What a malformed input must lead to: one sentence that names it and the remedy, and nothing changed on disk.

A table of cases is a list named `CASES` in a module of `tests/malformed/`; `test_malformed_inputs.py` runs all
of them in this process, each in a folder of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

#: what a case's folder holds before its command: text, bytes, or a function that is given the path
Content = str | bytes | Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A command with an input that cannot work."""

    #: name of the case, unique in its table
    name: str
    #: the command: `piwsl ...` or `main.py ...`; its working folder is the case's own
    command: str
    #: words of the sentence that say which file, key or option is at fault
    names: tuple[str, ...]
    #: a word of the sentence that says what to do
    remedy: str
    #: path -> content of the files that lie in the folder
    files: Mapping[str, Content] = field(default_factory=dict)
    #: paths to what a fixture provides, by the name the command uses in braces: `{data}`
    uses: tuple[str, ...] = ()


def refusal(case: Case, folder: Path, paths: Mapping[str, Path], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a case in `folder`; returns its one sentence after checking that nothing else happened."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content.format(**paths) if case.uses else content)
    before = snapshot(folder)
    program, *arguments = shlex.split(case.command.format(**paths) if case.uses else case.command)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main_of(program)(arguments)
    printed = capsys.readouterr().err
    assert stopped.value.code not in (0, None), f"{case.command} ended well"
    assert snapshot(folder) == before, "the refused command changed files"
    lines = [line for line in printed.splitlines() if line.startswith(f"{program}: ")]
    assert len(lines) == 1, printed
    assert "Traceback" not in printed
    for word in (*case.names, case.remedy):
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
    assert re.search(r"[.)\]'?]$", lines[0]), f"not a sentence: {lines[0]}"
    return lines[0]


def main_of(program: str) -> Callable[[list[str]], None]:
    """The entry point behind a command, called with its arguments."""
    import sys

    def call(arguments: list[str]) -> None:
        if program == "main.py":
            from fairchem_piwsl.jobs.launch import main
        else:
            from fairchem_piwsl.cli import main
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [program, *arguments])
            main()

    return call


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below `folder` with a digest of its content."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }
