"""A run's events as server-sent events: resumable, with heartbeats, ended by the run's end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from controlplane.runs.ports import Hub
from controlplane.runs.queries import TERMINAL, events_after, run_status
from controlplane.store import Store

_TERMINAL_EVENTS = frozenset({"run.completed", "run.failed", "run.cancelled"})
_BATCH = 500


async def event_stream(
    store: Store, hub: Hub, tenant: str, run_id: str, after: int, heartbeat_seconds: float
) -> AsyncIterator[bytes]:
    """Everything after ``after``, then what comes. Progress is live only and carries the last event's id."""
    shown: dict[str, Mapping[str, Any]] = {}
    async with hub.subscribe(run_id) as news:
        while not hub.closing:
            position = after
            events = news.since(position)
            status: str | None = "running"
            if events is None:
                # Status before events: if it has ended by then, its last event is among those read next.
                status = await store.read(lambda session: run_status(session, tenant, run_id))
                newer = partial(events_after, tenant=tenant, run_id=run_id, after=position, limit=_BATCH)
                events = await store.read(newer)
            for event in events:
                after = event["seq"]
                yield _encoded(event)
                if event["type"] in _TERMINAL_EVENTS:
                    return
            if events:
                continue
            if status is None or status in TERMINAL:
                return
            fresh = [(path, live) for path, live in hub.live(run_id).items() if shown.get(path) != live]
            for path, live in fresh:
                shown[path] = dict(live)
                data = {"fraction": live.get("fraction"), "text": live.get("text")}
                yield _encoded(
                    {
                        "seq": after,
                        "type": "step.progress",
                        "run": run_id,
                        "path": path,
                        "at": live.get("at"),
                        "data": data,
                    }
                )
            if not fresh and after == position:
                yield b": heartbeat\n\n"
            await news.wait(after, heartbeat_seconds)


def _encoded(event: dict[str, Any]) -> bytes:
    data = json.dumps(event, separators=(",", ":"))
    return f"id: {event['seq']}\nevent: {event['type']}\ndata: {data}\n\n".encode()
