"""Host-side file work on trees a guest wrote: never follows a link, never leaves the root, never opens a special.

Every step is relative to an open directory, with ``O_NOFOLLOW``, so swapping a directory for a link between two
steps (the guest may still be running) gains nothing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread

from sandboxes.driver import FileInfo

MAX_DEPTH = 100
"""Directories nested deeper are not entered; for ``usage`` such a tree is endless."""
PIECE_BYTES = 1024 * 1024

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def list_outputs(root: Path) -> tuple[FileInfo, ...]:
    """Regular files below ``root`` sorted by path.

    Links, specials, names that are not UTF-8 and anything deeper than ``MAX_DEPTH`` are left out. A missing root
    is an empty one.
    """
    found: list[FileInfo] = []
    for rel, info in _walk(root, lambda _: None):
        if stat.S_ISREG(info.st_mode) and _is_text(rel):
            found.append(FileInfo(path=rel, size_bytes=info.st_size))
    return tuple(sorted(found, key=lambda item: item.path))


def outputs_bytes(root: Path) -> int:
    """What reading all of ``list_outputs`` would give: holes count, and a file counts under each of its names."""
    return sum(file.size_bytes for file in list_outputs(root))


def read_output(root: Path, rel: str, max_bytes: int | None = None) -> bytes:
    """The bytes of one of ``list_outputs``, at most ``max_bytes`` of them. ``FileNotFoundError`` as ``open_output``."""
    with open_output(root, rel) as file:
        return file.read() if max_bytes is None else file.read(max_bytes)


async def stream_output(root: Path, rel: str) -> AsyncIterator[bytes]:
    """The same in pieces of at most ``PIECE_BYTES``, read in a worker thread."""
    file = await to_thread.run_sync(open_output, root, rel)
    with file:
        while piece := await to_thread.run_sync(file.read, PIECE_BYTES):
            yield piece


def open_output(root: Path, rel: str) -> BinaryIO:
    """The regular file ``rel`` below ``root``, for reading.

    ``FileNotFoundError`` for anything else: absolute, ``..``, through or to a link, a directory, a special.
    """
    parts = rel.split("/")
    if "\0" in rel or any(part in ("", ".", "..") for part in parts):
        raise FileNotFoundError(rel)
    fd = -1
    try:
        fd = os.open(root, _DIR_FLAGS)
        for part in parts[:-1]:
            below = os.open(part, _DIR_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
        target = os.open(parts[-1], _FILE_FLAGS, dir_fd=fd)
    except (OSError, UnicodeError) as error:
        raise FileNotFoundError(rel) from error
    finally:
        if fd >= 0:
            os.close(fd)
    if not stat.S_ISREG(os.fstat(target).st_mode):
        os.close(target)
        raise FileNotFoundError(rel)
    return os.fdopen(target, "rb")


def usage(root: Path) -> tuple[int, int]:
    """``(bytes on disk, inodes)`` below ``root``; a hard-linked file counts once, sparse holes do not.

    A tree deeper than ``MAX_DEPTH`` has ``sys.maxsize`` inodes: nobody can hide files by nesting.
    """
    size = inodes = 0
    too_deep = False
    seen: set[tuple[int, int]] = set()

    def deep(_: str) -> None:
        nonlocal too_deep
        too_deep = True

    for _, info in _walk(root, deep):
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
        size += info.st_blocks * 512
        inodes += 1
    return size, sys.maxsize if too_deep else inodes


def remove_tree(root: Path) -> None:
    """Delete ``root`` and all below, however deep, without following a link. Idempotent.

    Nested directories are first moved up to ``root``, so that neither recursion nor open files grow with depth.
    Call it when nobody writes there any more; what refuses to go stays and raises ``OSError``.
    """
    try:
        top = _open_to_change(root, None)
    except FileNotFoundError:
        return
    try:
        moved = 0
        unique = f".removing-{secrets.token_hex(8)}"
        queue = _empty(top)
        while queue:
            name = queue.pop()
            below = _open_to_change(name, top)
            try:
                for child in _empty(below):
                    moved += 1
                    lifted = f"{unique}-{moved}"
                    with contextlib.suppress(OSError):  # without write permission of its own it cannot be moved
                        os.chmod(child, 0o700, dir_fd=below)
                    os.rename(child, lifted, src_dir_fd=below, dst_dir_fd=top)
                    queue.append(lifted)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    root.rmdir()


def why_it_stays(root: Path, error: OSError) -> str:
    """One line for a log: what could not be removed, and how a person removes it."""
    place = shlex.quote(str(root))
    return f"{root} stays: {error.strerror or error}; by hand: umount -R -l {place}/* ; rm -rf {place}"


def _empty(fd: int) -> list[str]:
    """Unlink everything but directories in ``fd``; the directories' names come back."""
    with os.scandir(fd) as entries:
        items = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_dir in items:
        if not is_dir:
            os.unlink(name, dir_fd=fd)
    return [name for name, is_dir in items if is_dir]


def _open_to_change(path: Path | str, dir_fd: int | None) -> int:
    """Open a directory we own even if the guest took its permissions away, and give them back."""
    try:
        fd = os.open(path, _DIR_FLAGS, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(path, 0o700, dir_fd=dir_fd)  # our own tree, and the guest is gone: nobody can swap it for a link
        fd = os.open(path, _DIR_FLAGS, dir_fd=dir_fd)
    with contextlib.suppress(PermissionError):
        os.fchmod(fd, 0o700)
    return fd


def _walk(root: Path, deep: Callable[[str], None]) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry below ``root`` with its own (not a target's) status. What vanishes meanwhile is skipped."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from _entries(os.open(root, _DIR_FLAGS), "", deep)


def _entries(fd: int, prefix: str, deep: Callable[[str], None]) -> Iterator[tuple[str, os.stat_result]]:
    """As ``_walk``, below the open directory ``fd``, which it closes."""
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    info = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                rel = prefix + entry.name
                yield rel, info
                if not stat.S_ISDIR(info.st_mode):
                    continue
                if rel.count("/") >= MAX_DEPTH:
                    deep(rel)
                    continue
                try:
                    below = os.open(entry.name, _DIR_FLAGS, dir_fd=fd)
                except OSError:
                    continue
                yield from _entries(below, rel + "/", deep)
    finally:
        os.close(fd)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
