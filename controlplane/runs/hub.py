"""Who waits for a run's events: given them after the commit, never before. Live progress is not stored."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from controlplane.times import rfc3339

LIVE_RUNS = 1024
LIVE_STEPS = 256
_ATTEMPT_OVER = frozenset({"step.completed", "step.failed", "step.skipped", "step.cancelled", "step.retrying"})
RECENT = 1000
"""Events a slow reader is kept; one that falls further behind reads the store again."""


def event_json(run: str, *, seq: int, type: str, path: str, at_ns: int, data: Any) -> dict[str, Any]:
    """An event as the API shows it."""
    return {"seq": seq, "type": type, "run": run, "path": path, "at": rfc3339(at_ns), "data": data}


class Subscription:
    """One reader of one run."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._latest = 0
        self._ended = False
        self._news = False

    async def wait(self, after_seq: int, timeout: float) -> None:  # noqa: ASYNC109 - a bound, not a cancel scope
        """Return when events past ``after_seq`` are durable, something live came, the run ended, or time is over."""
        if self._latest > after_seq or self._news or self._ended:
            self._news = False
            return
        self._event.clear()
        try:
            await asyncio.wait_for(self._event.wait(), timeout)
        except TimeoutError:
            return
        self._news = False

    def since(self, after_seq: int) -> list[dict[str, Any]] | None:
        """Durable events past ``after_seq``, or ``None`` if only the store has all of them."""
        if self._recent and self._recent[0]["seq"] <= after_seq + 1:
            return [event for event in self._recent if event["seq"] > after_seq]
        return None

    def committed(self, events: Sequence[dict[str, Any]], ended: bool) -> None:
        self._recent.extend(events)
        self._latest = max(self._latest, *(event["seq"] for event in events))
        self._ended = self._ended or ended
        self._event.set()

    def news(self) -> None:
        self._news = True
        self._event.set()


class Hub:
    """Subscriptions by run, and the latest progress of running steps, of at most ``LIVE_STEPS`` a run at a time."""

    def __init__(self) -> None:
        self._readers: dict[str, set[Subscription]] = {}
        self._live: dict[str, dict[str, dict[str, Any]]] = {}
        self.closing = False

    def close(self) -> None:
        """End every stream: the process stops, and readers resume at the next one."""
        self.closing = True
        for readers in self._readers.values():
            for reader in readers:
                reader.news()

    @asynccontextmanager
    async def subscribe(self, run_id: str) -> AsyncIterator[Subscription]:
        """Listen to one run."""
        reader = Subscription()
        self._readers.setdefault(run_id, set()).add(reader)
        try:
            yield reader
        finally:
            readers = self._readers.get(run_id, set())
            readers.discard(reader)
            if not readers:
                self._readers.pop(run_id, None)

    def live(self, run_id: str) -> Mapping[str, Mapping[str, Any]]:
        """The latest progress of running steps: path -> {fraction, text, at}."""
        return self._live.get(run_id, {})

    def committed(self, run_id: str, events: Sequence[dict[str, Any]], ended: bool) -> None:
        """These events, at least one, are durable; they are the machine's own (``seq type path at_ns data``)."""
        live = self._live.get(run_id)
        if live is not None:
            for event in events:
                if event["type"] in _ATTEMPT_OVER:
                    live.pop(event["path"], None)
            if ended or not live:
                del self._live[run_id]
        readers = self._readers.get(run_id)
        if readers:
            shown = [event_json(run_id, **event) for event in events]
            for reader in readers:
                reader.committed(shown, ended)

    def progress(self, run_id: str, path: str, progress: dict[str, Any]) -> None:
        """Something to show now and forget."""
        if len(self._live) >= LIVE_RUNS and run_id not in self._live:
            self._live.pop(next(iter(self._live)))
        steps = self._live.setdefault(run_id, {})
        if len(steps) < LIVE_STEPS or path in steps:
            steps[path] = progress
        for reader in self._readers.get(run_id, ()):
            reader.news()
