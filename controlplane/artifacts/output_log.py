"""What attempts wrote to stdout and stderr, as files: ``root/<attempt>.stdout``. Bounded, append-only."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import anyio.to_thread

Stream = Literal["stdout", "stderr"]
_ATTEMPT = re.compile(r"[a-z]{1,8}_[0-9a-z]{1,64}\Z")
_CHUNK_BYTES = 256 * 1024


class OutputLog:
    """A repeated chunk changes nothing; bytes once stored never change; a gap is refused."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        """Makes ``root``. Blocking."""
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._root = root
        self._max_bytes = max_bytes

    async def append(self, attempt: str, stream: Stream, offset: int, data: bytes) -> bool:
        """Store ``data`` at ``offset`` of a stream. What lies beyond the bound is dropped.

        Returns: False if bytes before ``offset`` are missing; the sender goes on from ``size``. Calls for one attempt
        must not overlap. Raises: ValueError for a name that is no attempt's, OSError from the disk.
        """
        return await anyio.to_thread.run_sync(self._append, self._path(attempt, stream), offset, data)

    async def size(self, attempt: str, stream: Stream) -> int:
        """Where the stored stream ends, in bytes. Raises: as ``append``."""
        return await anyio.to_thread.run_sync(_size, self._path(attempt, stream))

    async def read(self, attempt: str, stream: Stream) -> AsyncIterator[bytes]:
        """What is stored, in chunks; nothing when there is none."""
        path = self._path(attempt, stream)
        position = 0
        while chunk := await anyio.to_thread.run_sync(_read_at, path, position):
            position += len(chunk)
            yield chunk

    def _append(self, path: Path, offset: int, data: bytes) -> bool:
        if offset < 0:
            raise ValueError("an offset is not negative")
        with path.open("ab") as file:
            size = file.tell()
            if offset > size:
                return size >= self._max_bytes
            fresh = data[size - offset : max(0, self._max_bytes - offset)]
            if fresh:
                file.write(fresh)
        return True

    def _path(self, attempt: str, stream: Stream) -> Path:
        if not _ATTEMPT.match(attempt) or stream not in ("stdout", "stderr"):
            raise ValueError(f"not an attempt's stream: {attempt[:80]!r}")
        return self._root / f"{attempt}.{stream}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_at(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(_CHUNK_BYTES)
    except FileNotFoundError:
        return b""
