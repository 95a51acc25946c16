"""What a model server writes, bounded: the file is cut to its end when it has grown, while the server writes on."""

from __future__ import annotations

import os
from pathlib import Path

MOST_BYTES = 4 * 1024 * 1024
KEPT_BYTES = 512 * 1024


class LogFile:
    """``path``, and beside it how many bytes were cut off, so that offsets go on across cuts and restarts. Blocks."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES, kept_bytes: int = KEPT_BYTES) -> None:
        self._path = path
        self._cut_path = path.with_suffix(".cut")
        self._most = most_bytes
        self._kept = kept_bytes
        try:
            self._cut = int(self._cut_path.read_text())
        except (OSError, ValueError):
            self._cut = 0

    def open(self) -> int:
        """A descriptor to append to; the caller closes it. Appending is what lets the file be cut meanwhile."""
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def note(self, text: str) -> None:
        """A line of ours."""
        fd = self.open()
        try:
            os.write(fd, f"stockade: {text}\n".encode())
        finally:
            os.close(fd)

    def written(self) -> int:
        """Bytes since the beginning, those that were cut off included."""
        return self._cut + (self._path.stat().st_size if self._path.exists() else 0)

    def tail(self, most_bytes: int) -> tuple[int, bytes]:
        """The end, and where in all that was written it begins."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = max(0, size - most_bytes)
                file.seek(start)
                return self._cut + start, file.read(most_bytes)
        except FileNotFoundError:
            return self._cut, b""

    def trim(self) -> None:
        """Cut it where it has grown too much; what is written in that moment may be lost."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        if size <= self._most:
            return
        _, kept = self.tail(self._kept)
        os.truncate(self._path, 0)
        fd = self.open()
        try:
            os.write(fd, kept)
        finally:
            os.close(fd)
        self._cut += size - len(kept)
        self._cut_path.write_text(str(self._cut))
