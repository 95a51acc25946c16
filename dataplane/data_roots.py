"""Folders this node exports as ``data://NAME/REL``. Files are opened beneath the root only, through no link."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from dataplane.config import ConfigError
from dataplane.protocol import DataRoot

FILES_MOST = 100_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class DataRefused(Exception):
    """The address names nothing that this node exports; the message says why."""


class DataRoots:
    """``roots`` maps export names to folders. Raises ``ConfigError`` for one that is no folder."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self._roots: dict[str, Path] = {}
        for name, path in roots.items():
            if not name or "/" in name or not path.is_dir():
                raise ConfigError(f"--data {name}={path}: NAME has no slash and the path is an existing folder")
            self._roots[name] = path.resolve()

    def locate(self, address: str) -> Path:
        """The host path of the regular file ``NAME/REL``. Blocking. Raises ``DataRefused``."""
        name, _, rel = address.removeprefix("data://").partition("/")
        root = self.folder(name)
        parts = rel.split("/")
        if "\0" in rel or any(part in ("", ".", "..") for part in parts):
            raise DataRefused(f"data://{address} does not name a file beneath its root")
        fd = -1
        try:
            fd = os.open(root, _FOLDER)
            for part in parts[:-1]:
                below = os.open(part, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
            target = os.open(parts[-1], _FILE, dir_fd=fd)
        except FileNotFoundError:
            raise DataRefused(f"there is no file data://{address} beneath its root") from None
        except (OSError, UnicodeError) as error:
            raise DataRefused(f"data://{address} cannot be opened beneath its root (links are not followed)") from error
        finally:
            if fd >= 0:
                os.close(fd)
        try:
            if not stat.S_ISREG(os.fstat(target).st_mode):
                raise DataRefused(f"data://{address} is not a regular file")
        finally:
            os.close(target)
        return root.joinpath(*parts)

    def folder(self, name: str) -> Path:
        """The root itself. Raises ``DataRefused``."""
        root = self._roots.get(name)
        if root is None:
            raise DataRefused(f"this node exports no data root {name!r}; it exports {sorted(self._roots)}")
        return root

    def describe(self) -> list[DataRoot]:
        """Size, count and digest of every root; at most ``FILES_MOST`` files of each are looked at. Blocking."""
        return [_describe(name, path) for name, path in sorted(self._roots.items())]


def _describe(name: str, root: Path) -> DataRoot:
    seen: list[tuple[str, int, int]] = []
    for folder, folders, files in os.walk(root, followlinks=False):
        folders.sort()
        for file in sorted(files):
            path = f"{folder}/{file}"
            try:
                info = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(info.st_mode):
                seen.append((os.path.relpath(path, root), info.st_size, info.st_mtime_ns))
        if len(seen) >= FILES_MOST:
            del seen[FILES_MOST:]
            break
    digest = hashlib.sha256()
    for rel, size, modified in sorted(seen):
        digest.update(f"{rel}\0{size}\0{modified}\n".encode("utf-8", "surrogateescape"))
    return DataRoot(
        name=name, size_bytes=sum(size for _, size, _ in seen), digest=f"sha256:{digest.hexdigest()}", files=len(seen)
    )
