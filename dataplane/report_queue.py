"""Reports that the control plane has not acknowledged yet. Nothing leaves but by an acknowledgement."""

from __future__ import annotations

from collections import deque

import anyio

from dataplane.protocol import Ack, Report

MOST = 256
BATCH_BYTES = 8 * 1024 * 1024
SMALL_BYTES = 512
REFUSALS_MOST = 20


class ReportQueue:
    """``put`` from anywhere, ``batch`` and ``settle`` from the report lane."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Report, int]] = deque()
        self._refusals: dict[tuple[str, int], int] = {}
        self._wake = anyio.Event()
        self._settled = anyio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, report: Report, size_bytes: int = SMALL_BYTES) -> None:
        """Queue a report; ``size_bytes`` is about what it takes on the wire."""
        self._waiting.append((report, size_bytes))
        if not self._wake.is_set():
            self._wake.set()

    def wake(self) -> None:
        """Let the lane look again though there is no new report."""
        self._wake.set()

    async def wait(self, seconds: float) -> None:
        """Until there is a report, or ``seconds`` are over."""
        if self._waiting:
            return
        with anyio.move_on_after(seconds):
            await self._wake.wait()
        self._wake = anyio.Event()

    async def settled(self) -> None:
        """Until the next acknowledgements came in."""
        await self._settled.wait()

    def held(self) -> list[tuple[str, int]]:
        return [(report.attempt, report.fence) for report, _ in self._waiting]

    def batch(self) -> list[Report]:
        """The oldest reports, at least one if there is any, within the bounds. They stay queued."""
        taken: list[Report] = []
        total = 0
        for report, size in self._waiting:
            if taken and (len(taken) >= MOST or total + size > BATCH_BYTES):
                break
            taken.append(report)
            total += size
        return taken

    def settle(self, acks: list[Ack]) -> list[Report]:
        """Answer the oldest ``len(acks)`` reports. Those refused again and again are given up and returned."""
        given_up: list[Report] = []
        again: list[tuple[Report, int]] = []
        for ack in acks:
            report, size = self._waiting.popleft()
            key = (report.attempt, report.fence)
            if ack.ok or ack.stale:
                if self._refusals:
                    self._refusals.pop(key, None)
                continue
            self._refusals[key] = self._refusals.get(key, 0) + 1
            if self._refusals[key] < REFUSALS_MOST:
                again.append((report, size))
                continue
            del self._refusals[key]
            given_up.append(report)
        self._waiting.extend(again)
        self._settled.set()
        self._settled = anyio.Event()
        return given_up
