"""Streams of a tunnel: fair, bounded, ended; against two ends joined in memory and against a peer that cheats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.lowlevel
import pytest

from dataplane.tunnel import frames
from dataplane.tunnel.frames import CHUNK_BYTES, STREAMS_MOST, WINDOW_BYTES, FrameBroken, Kind
from dataplane.tunnel.mux import Mux, TunnelFull
from dataplane.tunnel.transport import HIGH_BYTES

pytestmark = pytest.mark.anyio


class Recorder(asyncio.Protocol):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.got = bytearray()
        self.lost: list[Exception | None] = []
        self.may_write = True
        self.news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data
        self.news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)
        self.news.set()

    def pause_writing(self) -> None:
        self.may_write = False

    def resume_writing(self) -> None:
        self.may_write = True

    async def until(self, size: int) -> None:
        while len(self.got) < size:
            self.news.clear()
            await self.news.wait()

    async def gone(self) -> None:
        while not self.lost:
            self.news.clear()
            await self.news.wait()


class Ends:
    """A relay and a node; ``sent`` are the frames that the node's end sent."""

    def __init__(self) -> None:
        self.accepted: list[Recorder] = []
        self.sent: list[tuple[Kind, int, int]] = []
        self.relay = Mux(self._to_node)
        self.node = Mux(self._to_relay, self._accept)

    def _accept(self) -> Recorder:
        self.accepted.append(Recorder())
        return self.accepted[-1]

    async def _to_node(self, frame: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self.node.received(frame)

    async def _to_relay(self, frame: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        kind, number, payload = frames.decode(frame)
        self.sent.append((kind, number, len(payload)))
        self.relay.received(frame)

    async def pair(self) -> tuple[Recorder, Recorder]:
        here = Recorder()
        before = len(self.accepted)
        self.relay.open(here)
        while len(self.accepted) == before:
            await anyio.lowlevel.checkpoint()
        return here, self.accepted[-1]


@asynccontextmanager
async def tunnel() -> AsyncIterator[Ends]:
    ends = Ends()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        tasks = [group.create_task(mux.serve()) for mux in (ends.relay, ends.node)]
        yield ends
        for task in tasks:
            task.cancel()


async def test_bytes_arrive_in_order_both_ways_whatever_their_number() -> None:
    async with tunnel() as ends:
        here, there = await ends.pair()
        data = bytes(range(256)) * 8192
        here.transport.write(data)
        there.transport.write(data[::-1])
        await there.until(len(data))
        await here.until(len(data))
        assert (there.got, here.got) == (data, data[::-1])


async def test_a_slow_reader_holds_its_window_and_nothing_else() -> None:
    async with tunnel() as ends:
        slow, sender = await ends.pair()
        quick, other = await ends.pair()
        slow.transport.pause_reading()
        sender.transport.write(b"x" * (WINDOW_BYTES * 4))
        other.transport.write(b"y" * (WINDOW_BYTES * 4))
        await quick.until(WINDOW_BYTES * 4)
        assert slow.got == b""
        assert sum(size for kind, number, size in ends.sent if kind is Kind.DATA and number == 1) == WINDOW_BYTES
        assert not sender.may_write
        slow.transport.resume_reading()
        await slow.until(WINDOW_BYTES * 4)
        assert sender.may_write


async def test_streams_take_turns_chunk_by_chunk() -> None:
    async with tunnel() as ends:
        first, big = await ends.pair()
        second, small = await ends.pair()
        big.transport.write(b"x" * WINDOW_BYTES)
        small.transport.write(b"y" * 10)
        await second.until(10)
        assert [number for kind, number, _ in ends.sent if kind is Kind.DATA].index(2) <= 1
        await first.until(WINDOW_BYTES)


async def test_a_writer_is_told_to_wait_and_to_go_on() -> None:
    async with tunnel() as ends:
        here, there = await ends.pair()
        here.transport.write(b"x" * (HIGH_BYTES + 1))
        assert not here.may_write
        await there.until(HIGH_BYTES + 1)
        assert here.may_write


async def test_closing_sends_what_was_written_and_then_ends_both() -> None:
    async with tunnel() as ends:
        here, there = await ends.pair()
        there.transport.write(b"x" * (WINDOW_BYTES + 5))
        there.transport.close()
        there.transport.write(b"too late")
        await here.gone()
        await there.gone()
        assert len(here.got) == WINDOW_BYTES + 5
        assert (here.lost, there.lost) == ([None], [None])
        assert (len(ends.relay), len(ends.node)) == (0, 0)


async def test_a_reader_that_paused_gets_the_rest_before_the_end() -> None:
    async with tunnel() as ends:
        here, there = await ends.pair()
        here.transport.pause_reading()
        there.transport.write(b"last words")
        there.transport.close()
        await there.gone()
        while len(ends.relay):
            await anyio.lowlevel.checkpoint()
        assert (here.got, here.lost) == (b"", [])
        here.transport.resume_reading()
        await here.gone()
        assert here.got == b"last words"


async def test_aborting_ends_the_other_end_at_once() -> None:
    async with tunnel() as ends:
        here, there = await ends.pair()
        there.transport.write(b"x" * (WINDOW_BYTES * 2))
        here.transport.abort()
        await there.gone()
        assert len(ends.node) == 0


async def test_the_end_of_the_tunnel_is_an_error_on_every_stream() -> None:
    async with tunnel() as ends:
        streams = [(await ends.pair())[0] for _ in range(3)]
        ends.relay.end()
        for one in streams:
            await one.gone()
            assert isinstance(one.lost[0], ConnectionResetError)
        with pytest.raises(ConnectionResetError):
            ends.relay.open(Recorder())


async def test_streams_are_bounded() -> None:
    mux = Mux(_nowhere)
    for _ in range(STREAMS_MOST):
        mux.open(Recorder())
    with pytest.raises(TunnelFull):
        mux.open(Recorder())


async def _nowhere(_: bytes) -> None:
    """Sends nothing."""


async def test_a_peer_that_sends_more_than_its_credit_is_cut_off() -> None:
    mux = Mux(_nowhere)
    stream = mux.open(reader := Recorder())
    reader.transport.pause_reading()
    frame = frames.encode(Kind.DATA, stream.number, b"x" * CHUNK_BYTES)
    for _ in range(WINDOW_BYTES // CHUNK_BYTES):
        mux.received(frame)
    with pytest.raises(FrameBroken, match="credit"):
        mux.received(frame)


async def test_a_peer_that_gives_more_credit_than_was_used_is_cut_off() -> None:
    mux = Mux(_nowhere)
    stream = mux.open(Recorder())
    with pytest.raises(FrameBroken, match="credit"):
        mux.received(frames.credit(stream.number, 1))


async def test_a_peer_that_only_sends_is_cut_off() -> None:
    mux = Mux(_nowhere, Recorder)
    with pytest.raises(FrameBroken, match="does not read"):
        for number in range(1, STREAMS_MOST * 20):
            mux.received(frames.encode(Kind.OPEN, number))


async def test_nobody_opens_streams_towards_the_relay() -> None:
    with pytest.raises(FrameBroken, match="may not be opened"):
        Mux(_nowhere).received(frames.encode(Kind.OPEN, 1))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x02",
        b"\x09\x00\x00\x00\x01",
        b"\x03\x00\x00\x00\x01abc",
        b"\x01\x00\x00\x00\x01payload",
        b"\x02\x00\x00\x00\x01" + b"x" * (CHUNK_BYTES + 1),
        b"\x02\x00\x00\x00\x01" + b"x" * 100_000,
    ],
)
async def test_what_is_no_frame_ends_the_tunnel(message: bytes) -> None:
    with pytest.raises(FrameBroken):
        Mux(_nowhere, Recorder).received(message)


async def test_frames_of_a_stream_that_was_closed_here_are_ignored() -> None:
    mux = Mux(_nowhere)
    stream = mux.open(reader := Recorder())
    reader.transport.abort()
    for late in (frames.encode(Kind.DATA, stream.number, b"x"), frames.credit(stream.number, 5)):
        mux.received(late)
    assert reader.got == b""
