"""Records of flows on their way to the control plane. Putting never waits; what one attempt may put is bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import structlog

from dataplane.backoff import Backoff, insist
from dataplane.client import RequestRefused
from dataplane.flow_wire import FlowRecord
from dataplane.protocol import Ack

log = structlog.get_logger("stockade.node")
BATCH = 256
_TRIES = 8
FLOWS_MOST = 1000
"""Records of one attempt: no flow past it is opened, so none goes unrecorded."""


class FlowLog:
    """One for the node. ``serve`` sends in order until cancelled; an outage is waited out."""

    def __init__(self, send: Callable[[list[FlowRecord]], Awaitable[list[Ack]]]) -> None:
        self._send = send
        self._queue: deque[FlowRecord] = deque()
        self._waiting: dict[tuple[str, int], int] = {}
        self._wake, self._sent = anyio.Event(), anyio.Event()

    def put(self, record: FlowRecord) -> None:
        """Queue a record."""
        key = (record.attempt, record.fence)
        self._waiting[key] = self._waiting.get(key, 0) + 1
        self._queue.append(record)
        self._wake.set()

    async def flushed(self, attempt: str, fence: int, seconds: float) -> bool:
        """Wait until nothing of the attempt waits any more; ``False`` if that took longer than ``seconds``."""
        with anyio.move_on_after(seconds):
            while (attempt, fence) in self._waiting:
                await self._sent.wait()
        return (attempt, fence) not in self._waiting

    async def serve(self) -> None:
        """Send until cancelled."""
        while True:
            while not self._queue:
                self._wake = anyio.Event()
                await self._wake.wait()
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            await self._deliver(batch)
            for record in batch:
                key = (record.attempt, record.fence)
                left = self._waiting[key] - 1
                if left:
                    self._waiting[key] = left
                else:
                    del self._waiting[key]
            self._sent.set()
            self._sent = anyio.Event()

    async def _deliver(self, batch: list[FlowRecord]) -> None:
        backoff = Backoff()
        for _ in range(_TRIES):
            try:
                acks = await insist(partial(self._send, batch))
            except RequestRefused as refused:
                log.error("records of flows refused", count=len(batch), error=str(refused)[:300])
                return
            batch = [one for one, ack in zip(batch, acks, strict=True) if not ack.ok and not ack.stale]
            if not batch:
                return
            await backoff.wait()
        log.error("records of flows not kept", count=len(batch))
