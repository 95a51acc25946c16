"""What a ``data://`` address can and cannot open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataplane.data_roots import DataRefused, DataRoots


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("a")
    (root / "sub" / "b.txt").write_text("bb")
    (tmp_path / "secret.txt").write_text("secret")
    (root / "out").symlink_to(tmp_path / "secret.txt")
    (root / "in").symlink_to(root / "a.txt")
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    return DataRoots({"d": root})


@pytest.mark.parametrize("address", ["d/a.txt", "d/sub/b.txt", "data://d/a.txt"])
def test_regular_files_beneath_the_root(roots: DataRoots, address: str) -> None:
    assert roots.locate(address).is_file()


@pytest.mark.parametrize(
    "address",
    [
        "d/../secret.txt",
        "d/sub/../../secret.txt",
        "d//etc/passwd",
        "d/./a.txt",
        "d/",
        "d",
        "d/out",
        "d/in",
        "d/folder/secret.txt",
        "d/pipe",
        "d/sub",
        "d/missing",
        "d/a.txt\0",
        "d/\udcff",
        "other/a.txt",
        "/etc/passwd",
        "",
    ],
)
def test_everything_else_is_refused(roots: DataRoots, address: str) -> None:
    with pytest.raises(DataRefused):
        roots.locate(address)


def test_the_description_counts_regular_files_only_and_changes_with_them(roots: DataRoots, tmp_path: Path) -> None:
    before = roots.describe()[0]
    assert (before.name, before.files, before.size_bytes) == ("d", 2, 3)
    assert roots.describe()[0] == before
    (tmp_path / "root" / "c.txt").write_text("ccc")
    after = roots.describe()[0]
    assert (after.files, after.size_bytes) == (3, 6)
    assert after.digest != before.digest
