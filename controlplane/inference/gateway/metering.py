"""Tokens used, by day, principal, run and model: rows that only grow, written behind the answers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlmodel import col, func, select

from controlplane.runs.journal import Journal, JournalFailed
from controlplane.store import Store, Write
from controlplane.tables import ModelUsageRow

DAY_NS = 86_400 * 10**9
BATCHES_KNOWN = 10_000
"""Ids of batches that are remembered. A gateway has one batch under way and sends it again within seconds."""
log = structlog.get_logger(__name__)
_COUNTED = ("calls", "failed", "prompt_tokens", "completion_tokens", "milliseconds")
_KEY = ("tenant", "day", "principal", "run", "model")
_SQL = (
    f"INSERT INTO model_usage ({','.join((*_KEY, 'v', *_COUNTED))}) VALUES ({','.join('?' * 11)}) "  # noqa: S608
    f"ON CONFLICT ({','.join(_KEY)}) DO UPDATE SET {','.join(f'{one}={one}+excluded.{one}' for one in _COUNTED)}"
)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """One call. ``run`` is "" outside runs; ``failed`` counts calls that did not end as they should, aborted ones
    too."""

    tenant: str
    principal: str
    run: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    failed: bool = False


class Meter:
    """Counts. What a crash loses is the last answers' tokens, never an answer; and a batch whose answer it cut off is
    counted again, for the ids are not stored."""

    def __init__(self, store: Store, journal: Journal, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._journal = journal
        self._now_ns = now_ns
        self._taken: set[str] = set()
        self._in_order: deque[str] = deque()

    def add_batch(self, batch: str, used: Sequence[Usage]) -> None:
        """Queue what a gateway process sent under the id ``batch``, once however often it sends it."""
        if batch in self._taken:
            return
        self._taken.add(batch)
        self._in_order.append(batch)
        if len(self._in_order) > BATCHES_KNOWN:
            self._taken.remove(self._in_order.popleft())
        for one in used:
            self.add(one)

    def add(self, usage: Usage) -> None:
        """Queue it."""
        row = (
            usage.tenant,
            self._now_ns() // DAY_NS,
            usage.principal,
            usage.run,
            usage.model,
            1,  # the version
            1,  # call
            int(usage.failed),
            usage.prompt_tokens,
            usage.completion_tokens,
            round(usage.seconds * 1000),
        )
        try:
            self._journal.append([Write(_SQL, row)])
        except JournalFailed:  # the process stops
            log.warning("usage not counted", model=usage.model)

    async def totals(self, tenant: str, *, days: int, run: str | None, principal: str | None) -> list[dict[str, Any]]:
        """Sums of the last ``days`` days by principal, run and model, largest first, at most 1000."""
        row = ModelUsageRow
        tokens = func.sum(row.prompt_tokens + row.completion_tokens)
        query = (
            select(row.principal, row.run, row.model, *(func.sum(getattr(row, name)) for name in _COUNTED))
            .where(row.tenant == tenant, row.day > self._now_ns() // DAY_NS - days)
            .group_by(row.principal, row.run, row.model)
            .order_by(tokens.desc(), col(row.principal), col(row.run), col(row.model))
            .limit(1000)
        )
        if run is not None:
            query = query.where(row.run == run)
        if principal is not None:
            query = query.where(row.principal == principal)
        rows = await self._store.read(lambda session: session.exec(query).all())
        names = ("principal", "run", "model", *_COUNTED)
        return [dict(zip(names, one, strict=True)) | {"run": one[1] or None} for one in rows]
