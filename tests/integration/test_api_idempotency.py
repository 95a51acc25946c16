"""``Idempotency-Key`` while the first request runs, after it failed, after a crash, and after its time."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import anyio
import pytest
from fastapi import Response

from controlplane.errors import ApiError, Slug, conflict
from controlplane.idempotency import Idempotency
from controlplane.runs.journal import Journal
from controlplane.secrets.sealing import Sealer
from controlplane.store import Store, Write
from controlplane.tables import IdempotencyRow

pytestmark = pytest.mark.anyio


async def test_each_case_of_the_table(tmp_path: Path) -> None:
    store = Store(tmp_path / "stockade.db")
    store.migrate()
    journal = Journal(store)
    journal.start()
    try:
        await _in_flight(Idempotency(store, journal, Sealer(b"k" * 32), 60))
        await _refused_first(Idempotency(store, journal, Sealer(b"k" * 32), 60))
        await _interrupted(store, journal)
        await _expired(store, journal)
    finally:
        await journal.close()
        store.close()


async def _answer(reserved: str) -> Response:
    return Response(b"{}", 201)


async def _never(reserved: str) -> Response:
    raise AssertionError("performed twice")


async def _in_flight(idempotency: Idempotency) -> None:
    started, release = anyio.Event(), anyio.Event()

    async def slow(reserved: str) -> Response:
        started.set()
        await release.wait()
        return Response(b"first", 201, headers={"Location": "/x"})

    async def first() -> None:
        await idempotency.once("t", "p", "slow", "r", slow)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await started.wait()
            with pytest.raises(ApiError) as refused:
                await idempotency.once("t", "p", "slow", "r", _never)
            assert (refused.value.slug, refused.value.status) == (Slug.IDEMPOTENCY_IN_FLIGHT, 409)
            assert refused.value.retryable
            release.set()
        again = await idempotency.once("t", "p", "slow", "r", _never)
    assert (again.body, again.status_code, again.headers["location"]) == (b"first", 201, "/x")
    # Another caller's key of the same name is another key.
    assert (await idempotency.once("t", "q", "slow", "r", _answer)).body == b"{}"


async def _refused_first(idempotency: Idempotency) -> None:
    async def refuse(reserved: str) -> Response:
        raise conflict("no")

    with pytest.raises(ApiError, match="conflict"):
        await idempotency.once("t", "p", "refused", "r", refuse)
    assert (await idempotency.once("t", "p", "refused", "other", _answer)).status_code == 201


async def _interrupted(store: Store, journal: Journal) -> None:
    """The server dies while it performs: the next process performs again, under the same id."""
    performed: list[str] = []

    async def dies(reserved: str) -> Response:
        performed.append(reserved)
        raise BaseExceptionGroup("killed", [KeyboardInterrupt()])

    with pytest.raises(BaseExceptionGroup):
        await Idempotency(store, journal, Sealer(b"k" * 32), 60).once("t", "p", "interrupted", "r", dies)

    async def lives(reserved: str) -> Response:
        performed.append(reserved)
        return Response(b"{}", 201)

    after = Idempotency(store, journal, Sealer(b"k" * 32), 60)
    with pytest.raises(ApiError, match="mismatch"):
        await after.once("t", "p", "interrupted", "other", _never)
    assert (await after.once("t", "p", "interrupted", "r", lives)).status_code == 201
    assert performed[0] == performed[1]
    assert len(performed[0]) == 26


async def _expired(store: Store, journal: Journal) -> None:
    await _row(journal, "expired", "r", 201, age_seconds=61)
    answer = await Idempotency(store, journal, Sealer(b"k" * 32), 60).once("t", "p", "expired", "new", _answer)
    assert answer.body == b"{}"
    # The first request of a process clears what is too old, whoever's it was.
    await _row(journal, "old", "r", 201, age_seconds=61)
    await Idempotency(store, journal, Sealer(b"k" * 32), 60).once("t", "p", "fresh", "r", _answer)
    assert store.read_now(lambda session: session.get(IdempotencyRow, ("t", "p", "old"))) is None


async def _row(journal: Journal, key: str, request: str, status: int, age_seconds: int) -> None:
    digest = hashlib.sha256(request.encode()).hexdigest()
    created = time.time_ns() - age_seconds * 1_000_000_000
    sql = "INSERT INTO idempotency (tenant,principal,key,request_digest,status,body,created_ns) VALUES (?,?,?,?,?,?,?)"
    await journal.write([Write(sql, ("t", "p", key, digest, status, "", created))])
