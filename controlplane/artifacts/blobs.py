"""The port of the blob store (content-addressed bytes) and its adapter on a file system."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Protocol

import anyio.to_thread

from controlplane.errors import too_large

_CHUNK_BYTES = 256 * 1024


class BlobStore(Protocol):
    """Bytes named by ``sha256:<hex>``. Writing the same bytes twice stores them once."""

    async def write(self, stream: AsyncIterator[bytes], max_bytes: int) -> tuple[str, int]:
        """Store all of ``stream``; its digest and size, durable on return.

        Raises:
            ApiError: too-large; nothing is stored.
        """

    def read(self, digest: str) -> AsyncIterator[bytes]:
        """The bytes, in chunks. Raises: FileNotFoundError at the first chunk."""


class FileBlobs:
    """``root/ab/cdef…``; a file appears there complete (written beside, synced, renamed) or not at all."""

    def __init__(self, root: Path) -> None:
        """Makes ``root`` and clears what unfinished writes left. Blocking."""
        self._root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._incoming.iterdir():
            left.unlink()

    async def write(self, stream: AsyncIterator[bytes], max_bytes: int) -> tuple[str, int]:
        temporary = self._incoming / secrets.token_hex(16)
        file = await anyio.to_thread.run_sync(_create, temporary)
        hashed = hashlib.sha256()
        size = 0
        try:
            async for chunk in stream:
                size += len(chunk)
                if size > max_bytes:
                    raise too_large(max_bytes)
                hashed.update(chunk)
                await anyio.to_thread.run_sync(file.write, chunk)
            target = self._path(f"sha256:{hashed.hexdigest()}")
            await anyio.to_thread.run_sync(_finish, file, temporary, target)
        except BaseException:
            # Short and local, so it may block the loop: it must also run when the request was cancelled.
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        return f"sha256:{hashed.hexdigest()}", size

    async def read(self, digest: str) -> AsyncIterator[bytes]:
        file = await anyio.to_thread.run_sync(_open, self._path(digest))
        try:
            while chunk := await anyio.to_thread.run_sync(file.read, _CHUNK_BYTES):
                yield chunk
        finally:
            file.close()

    def _path(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise FileNotFoundError(digest)
        return self._root / name[:2] / name[2:]


def _create(path: Path) -> BinaryIO:
    return path.open("xb")


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _finish(file: BinaryIO, temporary: Path, target: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
    target.parent.mkdir(exist_ok=True, mode=0o700)
    temporary.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
