"""The node's pieces that need no network: lease, reports, output spool, artifact cache, configuration."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from dataplane.artifact_cache import ArtifactCache, FetchFailed
from dataplane.backoff import MOST_SECONDS, Backoff
from dataplane.client import RequestRefused
from dataplane.config import ConfigError, NodeConfig, stable_identity
from dataplane.lanes import Lane
from dataplane.leases import Lease, LeaseState
from dataplane.output_spool import OutputSpool
from dataplane.protocol import Ack, OutputChunk, Report
from dataplane.report_queue import REFUSALS_MOST, ReportQueue
from dataplane.sendable import Unsendable, encoded_bytes, plain

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_counts_from_when_the_heartbeat_was_sent() -> None:
    clock = Clock()
    lease = Lease(clock)
    lease.configure(15, 60)
    assert lease.state() is LeaseState.OVER
    clock.now = 105.0
    lease.renew(100.0)  # sent at 100, acknowledged at 105
    assert lease.state() is LeaseState.HELD
    assert lease.seconds_to_change() == 10
    clock.now = 115.1
    assert lease.state() is LeaseState.LAPSED
    assert not lease.held()
    clock.now = 175.1
    assert lease.state() is LeaseState.OVER
    assert lease.seconds_to_change() == float("inf")
    lease.renew(90.0)  # an older heartbeat's late answer renews nothing
    assert lease.state() is LeaseState.OVER


async def test_guarded_effects_stop_and_waiters_go_on_after_renewal() -> None:
    clock = Clock()
    lease = Lease(clock)
    lease.configure(15, 60)
    lease.renew(100.0)
    stopped = resumed = False
    async with anyio.create_task_group() as tasks:
        inside = anyio.Event()

        async def effect() -> None:
            nonlocal stopped, resumed
            with lease.guard() as scope:
                inside.set()
                await anyio.sleep_forever()
            stopped = scope.cancelled_caught
            await lease.wait_held()
            resumed = True

        tasks.start_soon(effect)
        await inside.wait()
        clock.now = 120.0
        lease.stop_effects()
        await anyio.lowlevel.checkpoint()
        assert not resumed
        lease.renew(119.0)
    assert stopped
    assert resumed


def test_reports_leave_by_acknowledgement_only() -> None:
    queue = ReportQueue()
    for number in range(300):
        queue.put(Report(attempt=str(number), fence=1))
    batch = queue.batch()
    assert len(batch) == 256
    assert queue.batch() == batch
    assert not queue.settle([Ack(ok=True), Ack(ok=False, stale=True), Ack(ok=False, message="try again")])
    assert len(queue) == 298
    assert queue.batch()[0].attempt == "3"
    assert queue.held()[-1] == ("2", 1)


def test_a_report_refused_again_and_again_is_given_up() -> None:
    queue = ReportQueue()
    queue.put(Report(attempt="a", fence=1))
    given_up = [queue.settle([Ack(ok=False)]) for _ in range(REFUSALS_MOST)]
    assert [len(items) for items in given_up] == [0] * (REFUSALS_MOST - 1) + [1]
    assert not len(queue)


def test_large_reports_travel_in_several_requests() -> None:
    queue = ReportQueue()
    for number in range(3):
        queue.put(Report(attempt=str(number), fence=1), 7 * 1024 * 1024)
    assert len(queue.batch()) == 1


def test_backoff_grows_and_is_bounded() -> None:
    backoff = Backoff()
    waits = [backoff.next_seconds() for _ in range(40)]
    assert waits[0] <= 0.05
    assert all(MOST_SECONDS / 2 <= wait <= MOST_SECONDS for wait in waits[-10:])


class SlowControlPlane:
    """Takes output only while open."""

    def __init__(self) -> None:
        self.open = anyio.Event()
        self.got: list[OutputChunk] = []
        self.stale = False

    async def output(self, chunks: list[OutputChunk]) -> list[Ack]:
        await self.open.wait()
        self.got.extend(chunks)
        return [Ack(ok=not self.stale, stale=self.stale) for _ in chunks]


async def test_output_spills_to_disk_and_arrives_whole_and_in_order(tmp_path: Path) -> None:
    plane: Any = SlowControlPlane()
    spool = OutputSpool(plane, tmp_path, memory_bytes=10_000)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(spool.serve)
        sent = b""
        for number in range(500):
            data = bytes([number % 251]) * 1000
            spool.put(OutputChunk(attempt="a", fence=1, stream="stdout", offset=len(sent), data=data))
            sent += data
        assert spool.spilled_bytes > 400_000
        assert not await spool.flushed("a", 1, 0.0)
        plane.open.set()
        assert await spool.flushed("a", 1, 10)
        assert spool.spilled_bytes == 0
        tasks.cancel_scope.cancel()
    spool.close()
    assert b"".join(chunk.data for chunk in plane.got) == sent
    offset = 0
    for chunk in plane.got:
        assert chunk.offset == offset
        offset += len(chunk.data)


async def bytes_of(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def test_the_cache_fetches_once_and_evicts_the_least_recently_used(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, 10)
    cache.load()
    for data in (b"aaaa", b"bbbb"):
        async with cache.hold(digest(data), bytes_of(data)) as path:
            assert path.read_bytes() == data
    async with cache.hold(digest(b"aaaa"), bytes_of(b"never read")) as path:
        assert path.read_bytes() == b"aaaa"
    async with cache.hold(digest(b"cccc"), bytes_of(b"cc", b"cc")):
        pass
    assert cache.used_bytes == 8
    added, removed = cache.changes()
    assert added == [digest(b"aaaa"), digest(b"cccc")]
    assert removed == [digest(b"bbbb")]
    cache.settle(added, removed)
    assert cache.changes() == ([], [])
    again = ArtifactCache(tmp_path, 10)
    again.load()
    assert sorted(again.changes()[0]) == sorted(added)


async def test_a_file_in_use_is_not_evicted(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, 5)
    cache.load()
    async with (
        cache.hold(digest(b"aaaa"), bytes_of(b"aaaa")) as first,
        cache.hold(digest(b"bbbb"), bytes_of(b"bbbb")) as second,
    ):
        assert await anyio.Path(first).exists()
        assert await anyio.Path(second).exists()
    assert cache.used_bytes <= 5


@pytest.mark.parametrize(("promised", "data"), [(b"good", b"evil"), (b"x" * 200, b"x" * 200)])
async def test_altered_or_oversized_artifacts_are_refused_and_leave_nothing(
    tmp_path: Path, promised: bytes, data: bytes
) -> None:
    cache = ArtifactCache(tmp_path, 100)
    cache.load()
    with pytest.raises(FetchFailed):
        async with cache.hold(digest(promised), bytes_of(data)):
            pass
    assert not [path async for path in anyio.Path(tmp_path).iterdir()]


@pytest.mark.parametrize(
    "url", ["http://10.0.0.5:8000", "http://control.example", "ftp://x", "https://u:p@h", "nothing"]
)
def test_a_token_never_travels_in_clear_text(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        NodeConfig(url=url, state_dir=tmp_path).checked_url()


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/", "http://localhost:1", "http://[::1]:1", "https://c.example"])
def test_loopback_or_tls(url: str, tmp_path: Path) -> None:
    assert NodeConfig(url=url, state_dir=tmp_path).checked_url() == url.rstrip("/")


def test_identity_and_join_token_are_kept(tmp_path: Path) -> None:
    config = NodeConfig(url="http://127.0.0.1", state_dir=tmp_path / "s", name="gpu-1")
    identity, proof = stable_identity(config)
    assert identity.startswith("gpu-1-")
    assert len(proof) == 64
    assert stable_identity(config) == (identity, proof)
    with pytest.raises(ConfigError, match="join-token"):
        config.read_join_token()
    (tmp_path / "s" / "node.token").write_text("kept\n")
    assert config.read_join_token() == "kept"


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, nested(101), nested(50_000), {1, object()}])
def test_values_that_would_poison_a_batch_are_refused(value: Any) -> None:
    with pytest.raises(Unsendable):
        encoded_bytes(value)


def test_ordinary_values_can_be_sent() -> None:
    assert encoded_bytes({"a": [1, 2.5, None, "é"], "b": nested(99)}) > 200
    assert plain("a\ud800b") == "a?b"


async def test_one_refused_message_does_not_answer_for_its_neighbours() -> None:
    async def send(messages: list[int]) -> list[str]:
        if 3 in messages:
            raise RequestRefused("three is not taken")
        return [str(message) for message in messages]

    lane = Lane(send)
    answers: dict[int, str] = {}

    async def ask(message: int) -> None:
        try:
            answers[message] = await lane.ask(message)
        except RequestRefused as error:
            answers[message] = str(error)

    async with anyio.create_task_group() as serving:
        async with anyio.create_task_group() as asking:
            for message in range(6):
                asking.start_soon(ask, message)
            serving.start_soon(lane.serve)
        serving.cancel_scope.cancel()
    assert answers == {number: str(number) for number in (0, 1, 2, 4, 5)} | {3: "three is not taken"}
