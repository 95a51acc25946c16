"""Host-side file work on a hostile tree."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sandboxes import hostfiles


def test_lists_only_regular_files_sorted(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    (root / "b").mkdir(parents=True)
    (root / "b" / "x.txt").write_bytes(b"12")
    (root / "a.txt").write_bytes(b"1")
    (root / "link").symlink_to("/etc/passwd")
    (root / "dirlink").symlink_to("/etc")
    os.mkfifo(root / "pipe")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff")).write_bytes(b"")
    assert [(f.path, f.size_bytes) for f in hostfiles.list_outputs(root)] == [("a.txt", 1), ("b/x.txt", 2)]
    assert hostfiles.list_outputs(tmp_path / "absent") == ()


@pytest.mark.parametrize("rel", ["link", "dirlink/passwd", "../secret", "/etc/passwd", "pipe", "b", "", "b//x", "a\0"])
def test_reads_nothing_but_own_regular_files(tmp_path: Path, rel: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "outputs"
    (root / "b").mkdir(parents=True)
    (root / "link").symlink_to("/etc/passwd")
    (root / "dirlink").symlink_to("/etc")
    os.mkfifo(root / "pipe")
    with pytest.raises(FileNotFoundError):
        hostfiles.read_output(root, rel)


def test_reads_at_most_what_was_asked(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"12345")
    assert hostfiles.read_output(tmp_path, "b/x") == b"12345"
    assert hostfiles.read_output(tmp_path, "b/x", 2) == b"12"


def test_usage_counts_hard_links_once_and_holes_never(tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(b"x" * 8192)
    os.link(tmp_path / "full", tmp_path / "again")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    size, inodes = hostfiles.usage(tmp_path)
    assert 8192 <= size < 1 << 20
    assert inodes == 2


def _nest(root: Path, depth: int) -> None:
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_tree_deeper_than_the_bound_is_endless_and_still_removable(tmp_path: Path) -> None:
    root = tmp_path / "deep"
    root.mkdir()
    _nest(root, 3000)
    assert hostfiles.usage(root)[1] == sys.maxsize
    hostfiles.remove_tree(root)
    assert not root.exists()


def test_removal_follows_no_link_and_is_idempotent(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"1")
    root = tmp_path / "tree"
    (root / "d").mkdir(parents=True)
    (root / "link").symlink_to(outside)
    (root / "d" / "link").symlink_to(outside)
    (root / "d").chmod(0)
    hostfiles.remove_tree(root)
    hostfiles.remove_tree(root)
    assert not root.exists()
    assert (outside / "kept").exists()
