"""One daemon at a time uses a state folder: a lock that the kernel releases however its holder ends.

The control plane has its own: neither imports the other.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_SECONDS = 2.0
"""Long enough for a killed daemon to be gone."""
ALREADY_RUNNING = 9
"""The exit status of whoever came second; see docs/command-line.md."""
_POLL_SECONDS = 0.05


class AlreadyRunning(Exception):
    """Another process holds the folder. ``pid`` is 0 and ``url`` empty where it has not written them yet."""

    def __init__(self, folder: Path, pid: int, url: str) -> None:
        super().__init__(f"already running for {url or 'an unknown address'} (pid {pid or 'unknown'}), with {folder}")
        self.folder = folder
        self.pid = pid
        self.url = url


@contextmanager
def hold_state(folder: Path, url: str, *, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Hold ``folder`` (made if absent) until the block or the process ends. Blocks. Raises ``AlreadyRunning``."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(folder / "running.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience_seconds
        while not _taken(fd):
            if time.monotonic() >= deadline:
                raise AlreadyRunning(folder, *_holder(fd))
            time.sleep(_POLL_SECONDS)
        os.ftruncate(fd, os.pwrite(fd, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0))
        yield
    finally:
        os.close(fd)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> tuple[int, str]:
    try:
        said = json.loads(os.pread(fd, 4096, 0))
        return int(said["pid"]), str(said["url"])
    except (ValueError, KeyError, TypeError):
        return 0, ""
