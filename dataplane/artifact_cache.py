"""Artifacts on this node's disk, by digest: verified when they come in, bounded, least recently used out first.

A file in use by an attempt is never removed. ``changes`` gives what heartbeats tell: digests that came and went.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

ALGORITHM = "sha256:"


class FetchFailed(Exception):
    """An input cannot be had here; the message says which and why."""


class ArtifactCache:
    """``limit_bytes`` bounds what is kept; one artifact above it is refused."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._users: dict[str, int] = {}
        self._filling: dict[str, anyio.Lock] = {}
        self._added: dict[str, None] = {}
        self._removed: dict[str, None] = {}

    def load(self) -> None:
        """Take over what an earlier start left. Half-written files go. Blocking: call it in a thread."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found: list[tuple[float, str, int]] = []
        for path in self._folder.iterdir():
            info = path.lstat()
            if len(path.name) != 64 or not path.is_file() or path.is_symlink():
                path.unlink()
                continue
            found.append((info.st_mtime, path.name, info.st_size))
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self._added[name] = None
        self._shrink(0)

    @property
    def used_bytes(self) -> int:
        return sum(self._sizes.values())

    @asynccontextmanager
    async def hold(self, digest: str | None, source: AsyncIterator[bytes]) -> AsyncIterator[Path]:
        """The file with ``digest``, from the cache or else read from ``source``; kept while held.

        Without a digest ``source`` is always read. Raises ``FetchFailed`` if the bytes are not what was promised.
        """
        known = None if digest is None else digest.removeprefix(ALGORITHM).lower()
        if known is None:
            known = await self._fill(None, source)
        else:
            lock = self._filling.setdefault(known, anyio.Lock())
            self._users[known] = self._users.get(known, 0) + 1
            try:
                async with lock:
                    if not await self._present(known):
                        await self._fill(known, source)
            finally:
                self._release(known)
                if not lock.locked():
                    self._filling.pop(known, None)
        self._users[known] = self._users.get(known, 0) + 1
        try:
            yield self._folder / known
        finally:
            self._release(known)
            self._shrink(0)

    def changes(self) -> tuple[list[str], list[str]]:
        """Digests added and removed since ``settle``."""
        return [ALGORITHM + name for name in self._added], [ALGORITHM + name for name in self._removed]

    def settle(self, added: list[str], removed: list[str]) -> None:
        """The control plane knows these now."""
        for digest in added:
            self._added.pop(digest.removeprefix(ALGORITHM), None)
        for digest in removed:
            self._removed.pop(digest.removeprefix(ALGORITHM), None)

    def tell_all(self) -> None:
        """A new registration knows nothing: tell everything again."""
        self._added = dict.fromkeys(self._sizes)
        self._removed.clear()

    def _release(self, name: str) -> None:
        self._users[name] -= 1
        if not self._users[name]:
            del self._users[name]

    async def _present(self, name: str) -> bool:
        if name not in self._sizes:
            return False
        if not await anyio.Path(self._folder / name).is_file():
            self._forget(name)
            return False
        self._sizes.move_to_end(name)
        return True

    async def _fill(self, promised: str | None, source: AsyncIterator[bytes]) -> str:
        temporary = self._folder / f".incoming-{secrets.token_hex(8)}"
        digest, size = hashlib.sha256(), 0
        try:
            async with await anyio.open_file(temporary, "xb") as file:
                async for chunk in source:
                    size += len(chunk)
                    if size > self._limit:
                        raise FetchFailed(f"an artifact is larger than this node's cache ({self._limit} bytes)")
                    digest.update(chunk)
                    await file.write(chunk)
            name = digest.hexdigest()
            if promised is not None and name != promised:
                raise FetchFailed(f"artifact sha256:{promised} came as sha256:{name}: it was altered on its way")
            await anyio.to_thread.run_sync(_publish, temporary, self._folder / name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        self._sizes[name] = size
        self._sizes.move_to_end(name)
        self._added[name] = None
        self._removed.pop(name, None)
        self._shrink(size)
        return name

    def _shrink(self, newest: int) -> None:
        excess = self.used_bytes - self._limit
        for name, size in list(self._sizes.items()):
            if excess <= 0:
                return
            if self._users.get(name) or (newest and name == next(reversed(self._sizes))):
                continue
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).unlink()
            self._forget(name)
            excess -= size

    def _forget(self, name: str) -> None:
        del self._sizes[name]
        if name in self._added:
            del self._added[name]
        self._removed[name] = None


def _publish(temporary: Path, final: Path) -> None:
    temporary.chmod(0o444)
    temporary.replace(final)
