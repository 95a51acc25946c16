"""One batched request kind: whatever queued while the last request was away goes with the next, never by a timer."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

from dataplane.backoff import insist
from dataplane.client import RequestRefused

M = TypeVar("M")
A = TypeVar("A")
MOST = 256


class _Waiting(Generic[M, A]):
    def __init__(self, message: M) -> None:
        self.message = message
        self.answer: A | None = None
        self.refused: RequestRefused | None = None
        self.done = anyio.Event()
        self.abandoned = False


class Lane(Generic[M, A]):
    """``ask`` from many tasks, ``serve`` from one. An outage is waited out; a refused batch goes again one by one."""

    def __init__(self, send: Callable[[list[M]], Awaitable[list[A]]]) -> None:
        self._send = send
        self._queue: deque[_Waiting[M, A]] = deque()
        self._wake = anyio.Event()

    async def ask(self, message: M) -> A:
        """The answer to ``message``. Raises ``RequestRefused``."""
        waiting: _Waiting[M, A] = _Waiting(message)
        self._queue.append(waiting)
        self._wake.set()
        try:
            await waiting.done.wait()
        finally:
            waiting.abandoned = True
        if waiting.refused is not None or waiting.answer is None:
            raise RequestRefused(str(waiting.refused))
        return waiting.answer

    async def serve(self) -> None:
        """Send until cancelled."""
        while True:
            while not self._queue:
                self._wake = anyio.Event()
                await self._wake.wait()
            batch: list[_Waiting[M, A]] = []
            while self._queue and len(batch) < MOST:
                waiting = self._queue.popleft()
                if not waiting.abandoned:
                    batch.append(waiting)
            if batch:
                await self._deliver(batch)

    async def _deliver(self, batch: list[_Waiting[M, A]]) -> None:
        messages = [waiting.message for waiting in batch]
        try:
            answers = await insist(lambda: self._send(messages))
        except RequestRefused as refused:
            if len(batch) > 1:  # one message that cannot be read must not answer for its neighbours
                for waiting in batch:
                    await self._deliver([waiting])
                return
            batch[0].refused = refused
            batch[0].done.set()
            return
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.answer = answer
            waiting.done.set()
