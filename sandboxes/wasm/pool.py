"""Warm workers: each has its interpreter started and waits for a job. A claim takes one, the pool refills at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable

from sandboxes.errors import DriverFailed
from sandboxes.wasm.launch import WorkerProcess

START_SECONDS = 30.0


class Pool:
    """Workers of one image, made by ``spawn`` (blocking). Bound to the event loop that first takes one."""

    def __init__(self, spawn: Callable[[], WorkerProcess], size: int) -> None:
        self._spawn = spawn
        self._size = size
        self._ready: deque[WorkerProcess] = deque()
        self._refilling: asyncio.Task[None] | None = None
        self._closed = False
        self.failure = ""
        """Why the last refill failed; empty when it did not."""

    @property
    def ready(self) -> int:
        """How many claims would be warm now."""
        return len(self._ready)

    async def take(self) -> WorkerProcess:
        """A warm worker, or a cold start if there is none. ``DriverFailed`` if it does not come up."""
        try:
            while self._ready:
                worker = self._ready.popleft()
                if _silent(worker):
                    return worker
                await asyncio.to_thread(worker.destroy)
            return await self._start()
        finally:
            self.refill()

    def refill(self) -> None:
        """Bring the pool up to its size in the background. Idempotent."""
        if not self._closed and (self._refilling is None or self._refilling.done()):
            self._refilling = asyncio.get_running_loop().create_task(self._fill())

    async def filled(self) -> None:
        """Return when the refill under way is over."""
        if self._refilling is not None:
            await asyncio.shield(self._refilling)

    async def close(self) -> None:
        """End every worker that waits. Idempotent."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refilling
        while self._ready:
            await asyncio.to_thread(self._ready.popleft().destroy)

    async def _fill(self) -> None:
        while len(self._ready) < self._size and not self._closed:
            try:
                self._ready.append(await self._start())
                self.failure = ""
            except DriverFailed as error:
                self.failure = str(error)
                return

    async def _start(self) -> WorkerProcess:
        loop = asyncio.get_running_loop()
        spawned = loop.run_in_executor(None, self._spawn)
        try:
            worker = await asyncio.shield(spawned)
        except asyncio.CancelledError:
            await asyncio.to_thread((await spawned).destroy)
            raise
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await loop.sock_recv(worker.control, 64)
            if line == b"ready\n":
                return worker
            raise DriverFailed(f"a wasm worker ended before it was ready: {_last_words(worker)}")
        except TimeoutError:
            await asyncio.to_thread(worker.destroy)
            raise DriverFailed(f"a wasm worker was not ready after {START_SECONDS:.0f} s") from None
        except BaseException:
            await asyncio.to_thread(worker.destroy)
            raise


def _silent(worker: WorkerProcess) -> bool:
    """A waiting worker says nothing; an end of file means that it died."""
    try:
        worker.control.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _last_words(worker: WorkerProcess) -> str:
    try:
        text = os.read(worker.stderr_fd, 65536).decode(errors="replace").strip()
    except OSError:
        text = ""
    return (text.splitlines() or ["no message"])[-1][:500]
