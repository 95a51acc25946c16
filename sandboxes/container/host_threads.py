"""Threads in which files are where the engine sees them.

A node as root has mounts of its own. What it mounts for a container the engine would not see, so everything that
touches a box, from its making to the reading of its outputs, happens in threads that went back to the host's mounts.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from anyio import to_thread

from sandboxes.mounts import left_the_hosts, rejoin_the_hosts

_Value = TypeVar("_Value")
_THREADS = 8


class HostThreads:
    """Made when first used, ended by ``close``."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    async def run(self, function: Callable[..., _Value], *arguments: object) -> _Value:
        """As ``to_thread.run_sync``: the call is waited for, whatever happens to the caller."""
        if not left_the_hosts():
            return await to_thread.run_sync(function, *arguments)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "host files", initializer=rejoin_the_hosts)
        return await to_thread.run_sync(self._threads.submit(function, *arguments).result)

    async def close(self) -> None:
        """End the threads. Idempotent."""
        if self._threads is not None:
            await to_thread.run_sync(self._threads.shutdown)
            self._threads = None
