"""Keys, secrets, artifacts, attempt output and event streams against a real database and disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from controlplane.artifacts.artifacts import Artifacts
from controlplane.artifacts.blobs import FileBlobs
from controlplane.artifacts.output_log import OutputLog
from controlplane.errors import ApiError
from controlplane.identity import CACHE_SECONDS, Identities
from controlplane.runs.event_stream import event_stream
from controlplane.runs.hub import Hub
from controlplane.runs.journal import Journal, JournalFailed
from controlplane.secrets.broker import SecretBroker, SecretUnavailable
from controlplane.secrets.sealing import SealBroken, Sealer
from controlplane.secrets.store import DatabaseSecrets
from controlplane.store import Store, Write, insert, upsert
from controlplane.tables import EventRow, RunRow, partition_of

pytestmark = pytest.mark.anyio
RUN = "run_00000000000000000000000000"


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[tuple[Store, Journal]]:
    store = Store(tmp_path / "stockade.db")
    store.migrate()
    journal = Journal(store)
    journal.start()
    try:
        yield store, journal
    finally:
        await journal.close()
        store.close()


async def test_a_key_ends_when_it_expires_even_when_cached(tmp_path: Path) -> None:
    now = [1_000_000_000]
    async with opened(tmp_path) as (store, journal):
        identities = Identities(store, journal, "default", lambda: now[0])
        _, key = await identities.create(name="k", kind="service", scopes=["read"], expires_in_seconds=5)
        assert await identities.authenticate(key) is not None
        now[0] += 5_000_000_000
        assert await identities.authenticate(key) is None


async def test_a_revoked_key_ends_everywhere_within_the_cache_time(tmp_path: Path) -> None:
    now = [1_000_000_000]
    async with opened(tmp_path) as (store, journal):
        here = Identities(store, journal, "default", lambda: now[0])
        there = Identities(store, journal, "default", lambda: now[0])
        shown, key = await here.create(name="k", kind="service", scopes=["read"])
        assert await there.authenticate(key) is not None
        await here.revoke(shown["id"])
        assert await here.authenticate(key) is None
        now[0] += int(CACHE_SECONDS * 1e9) + 1
        assert await there.authenticate(key) is None


async def test_a_join_token_ends(tmp_path: Path) -> None:
    now = [1_000_000_000]
    async with opened(tmp_path) as (store, journal):
        identities = Identities(store, journal, "default", lambda: now[0])
        token, _ = await identities.create_join_token(10)
        assert await identities.join_tenant(token) == "default"
        assert await identities.join_tenant(token + "x") is None
        now[0] += 10_000_000_000
        assert await identities.join_tenant(token) is None


async def test_a_sealed_secret_opens_only_under_its_own_name_and_key(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, journal):
        secrets = DatabaseSecrets(store, journal, Sealer.from_file(tmp_path / "key"))
        await secrets.put("default", "a", "value")
        copy = "INSERT INTO secret SELECT tenant, 'b', v, key_id, sealed, created_ns, updated_ns FROM secret"
        await journal.write([Write(copy, ())])
        assert await SecretBroker(secrets).lease("default", "a") == "value"
        with pytest.raises(SealBroken):
            await secrets.get("default", "b")
        other = SecretBroker(DatabaseSecrets(store, journal, Sealer(b"x" * 32)))
        for broker, name in ((other, "a"), (other, "none")):
            with pytest.raises(SecretUnavailable) as refused:
                await broker.lease("default", name)
            assert "value" not in str(refused.value)


async def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Sealer.from_file(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        Sealer.from_file(tmp_path / "key")


async def test_an_artifact_above_its_limit_leaves_nothing(tmp_path: Path) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"12345"
        yield b"67890"

    async with opened(tmp_path) as (store, journal):
        artifacts = Artifacts(store, journal, FileBlobs(tmp_path / "artifacts"), 9)
        with pytest.raises(ApiError) as refused:
            await artifacts.put("default", "n", "text/plain", stream())
        assert refused.value.status == 413
        assert [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == []
        stored = await artifacts.put("default", "n", "text/plain", stream(), max_bytes=10)
        opened_artifact = await artifacts.open("default", stored["id"])
        assert opened_artifact is not None
        assert b"".join([chunk async for chunk in opened_artifact[1]]) == b"1234567890"
        assert await artifacts.open("other", stored["id"]) is None


async def test_output_is_append_only_idempotent_and_bounded(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, 10)
    assert await log.append("att_1", "stdout", 0, b"abc")
    assert await log.append("att_1", "stdout", 0, b"XYZ")
    assert await log.append("att_1", "stdout", 2, b"cde")
    assert not await log.append("att_1", "stdout", 9, b"gap")
    assert await log.append("att_1", "stdout", 5, b"fghijklmn")
    assert await log.append("att_1", "stdout", 14, b"more")
    assert b"".join([chunk async for chunk in log.read("att_1", "stdout")]) == b"abcdefghij"
    for name in ("../x", "att_1/../x", "att_\n", ""):
        with pytest.raises(ValueError, match="not an attempt"):
            await log.append(name, "stdout", 0, b"")


async def test_a_stream_wakes_for_events_shows_progress_and_ends(tmp_path: Path) -> None:
    key = {"tenant": "default", "partition": partition_of(RUN)}

    def event(seq: int, kind: str) -> Write:
        return insert(EventRow, EventRow(**key, run=RUN, seq=seq, type=kind, at_ns=seq).model_dump())

    run = RunRow(
        **key, id=RUN, seq=1, status="running", workflow_name="w", workflow_version="1", workflow_digest="d",
        principal="p", created_ns=1, updated_ns=1,
    )  # fmt: skip
    async with opened(tmp_path) as (store, journal):
        hub = Hub()
        await journal.write([upsert(RunRow, run.model_dump()), event(1, "run.created")])
        stream = event_stream(store, hub, "default", RUN, 0, 0.01)
        with anyio.fail_after(10):
            assert (await anext(stream)).startswith(b"id: 1\nevent: run.created\n")
            assert await anext(stream) == b": heartbeat\n\n"
            hub.progress(RUN, "a", {"fraction": 0.5, "text": "half", "at": "now"})
            shown = await anext(stream)
            while shown == b": heartbeat\n\n":
                shown = await anext(stream)
            assert b"event: step.progress" in shown
            assert shown.startswith(b"id: 1\n")
            await journal.write([event(2, "run.completed")])
            ended = {"seq": 2, "type": "run.completed", "path": "", "at_ns": 2, "data": {}}
            hub.committed(RUN, [ended], True)
            rest = [chunk async for chunk in stream if chunk != b": heartbeat\n\n"]
        assert len(rest) == 1
        assert rest[0].startswith(b"id: 2\nevent: run.completed\n")


async def test_a_value_the_database_refuses_costs_only_its_own_transition(tmp_path: Path) -> None:
    key = {"tenant": "default", "partition": partition_of(RUN), "run": RUN, "type": "run.created", "path": "", "v": 1}
    async with opened(tmp_path) as (_, journal):
        with anyio.fail_after(10):
            with pytest.raises(JournalFailed):
                await journal.write([insert(EventRow, {**key, "seq": 1, "at_ns": 2**70, "data": "{}"})])
            await journal.write([insert(EventRow, {**key, "seq": 1, "at_ns": 1, "data": "{}"})])
