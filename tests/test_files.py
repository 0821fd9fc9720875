"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat

import numpy as np
import pytest

from fairchem_piwsl import files
from fairchem_piwsl.errors import UserError


@pytest.mark.parametrize("old", [b"before", None])
def test_a_block_that_ends_early_leaves_what_was_there(tmp_path, old):
    path = tmp_path / "a" / "b.bin"
    if old is not None:
        path.parent.mkdir()
        path.write_bytes(old)

    def write_half():
        with files.whole_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [p.name for p in path.parent.iterdir()] == (["b.bin"] if old else [])
    assert old is None or path.read_bytes() == old


def test_readers_see_the_old_file_until_the_end(tmp_path):
    path = files.write_text(tmp_path / "a.txt", "old")
    with files.whole_file(path, "w") as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        path = files.write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_text(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        files.write_text(tmp_path / "a" / "b.txt", "text")
    with pytest.raises(UserError, match="is no folder"):
        files.check_output_folder(tmp_path / "a" / "b" / "c")


def test_checking_a_folder_makes_nothing(tmp_path):
    files.check_output_folder(tmp_path / "new" / "deep")
    assert not list(tmp_path.iterdir())


def test_a_link_that_leads_nowhere_is_no_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    with pytest.raises(UserError, match="link is no folder"):
        files.check_output_folder(tmp_path / "link" / "results")


def test_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match="cannot be written"):
        files.check_output_folder(tmp_path / "results")


def test_json_is_strict(tmp_path):
    value = {"nan": float("nan"), "array": np.arange(2.0), "number": np.float32(0.5), 1: (tmp_path,)}
    path = files.write_json(tmp_path / "a.json", value)
    assert json.loads(path.read_text()) == {
        "nan": None,
        "array": [0.0, 1.0],
        "number": 0.5,
        "1": [str(tmp_path)],
    }


def test_an_earlier_result_stays(tmp_path):
    path = tmp_path / "a.json"
    for number in (1, 2, 2, 3):
        files.write_result(path, {"number": number})
    found = {p.name: json.loads(p.read_text())["number"] for p in tmp_path.iterdir()}
    assert found == {"a.json": 3, "a.json.1": 1, "a.json.2": 2}
