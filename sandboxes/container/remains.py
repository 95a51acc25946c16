"""Ended containers, deleted while nobody waits: that takes the engine longer than all the rest of a warm start."""

from __future__ import annotations

import asyncio
import contextlib

from anyio import to_thread

from sandboxes.container.engine import Engine
from sandboxes.errors import DriverFailed


class Remains:
    """Owns the deletions until ``close``. One that fails leaves a dead container, which ``reap`` finds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, container: str) -> None:
        """Delete it soon."""
        task = asyncio.create_task(self._remove(container), name=f"remove {container[:12]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for all of them."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _remove(self, container: str) -> None:
        with contextlib.suppress(DriverFailed):
            await to_thread.run_sync(self._engine.remove, container)
