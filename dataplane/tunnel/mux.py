"""All streams of one tunnel. Its owner feeds it messages and runs its sender; both ends use the same class.

Streams send in turns of one chunk, so a large one delays a small one by at most a chunk for each other stream. A
stream whose reader is slow holds its window and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from dataplane.tunnel import frames
from dataplane.tunnel.frames import STREAMS_MOST, FrameBroken, Kind
from dataplane.tunnel.transport import StreamTransport

CONTROL_MOST = STREAMS_MOST * 8
Accept = Callable[[], asyncio.Protocol]


class TunnelFull(Exception):
    """As many streams as there may be are open."""


class Mux:
    """``accept`` makes the protocol of a stream that the peer opens; without it this end opens, and nobody else."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], accept: Accept | None = None) -> None:
        self._send = send
        self._accept = accept
        self._streams: dict[int, StreamTransport] = {}
        self._control: deque[bytes] = deque()
        self._turns: deque[StreamTransport] = deque()
        self._waiting: set[int] = set()
        self._wake = asyncio.Event()
        self._last = 0
        self.is_over = False

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, protocol: asyncio.Protocol) -> StreamTransport:
        """A new stream, at once. Raises: TunnelFull, ConnectionResetError when the tunnel is over."""
        if self.is_over:
            raise ConnectionResetError("the tunnel is over")
        if len(self._streams) >= STREAMS_MOST:
            raise TunnelFull(f"{STREAMS_MOST} streams are open")
        self._last = self._last % 0xFFFFFFFF + 1
        while self._last in self._streams:
            self._last = self._last % 0xFFFFFFFF + 1
        stream = self._streams[self._last] = StreamTransport(self, self._last)
        self.control(frames.encode(Kind.OPEN, stream.number))
        stream.connect(protocol)
        return stream

    def received(self, message: bytes) -> None:
        """One message of the peer. Raises: FrameBroken; the tunnel must end then."""
        if len(self._control) > CONTROL_MOST:
            raise FrameBroken("a peer that sends and does not read")
        kind, number, payload = frames.decode(message)
        stream = self._streams.get(number)
        if kind is Kind.OPEN:
            if self._accept is None or stream is not None:
                raise FrameBroken("a stream that may not be opened")
            if len(self._streams) >= STREAMS_MOST:
                self.control(frames.encode(Kind.CLOSE, number))
                return
            stream = self._streams[number] = StreamTransport(self, number)
            stream.connect(self._accept())
        elif stream is None:
            return  # it was closed at this end while this was on its way
        elif kind is Kind.DATA:
            stream.received(payload)
        elif kind is Kind.CREDIT:
            stream.credited(frames.taken(payload))
        else:
            stream.lost(None, told=True)

    async def serve(self) -> None:
        """Send what there is to send, until cancelled, or ``send`` raises."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while frame := self._next():
                await self._send(frame)

    def end(self, error: Exception | None = None) -> None:
        """The connection is gone: every stream is lost."""
        self.is_over = True
        for stream in list(self._streams.values()):
            stream.lost(error or ConnectionResetError("the tunnel ended"), told=True)

    # --- Carrier

    def control(self, frame: bytes) -> None:
        if self.is_over:
            return
        self._control.append(frame)
        self._wake.set()

    def has_data(self, stream: StreamTransport) -> None:
        if stream.number not in self._waiting:
            self._waiting.add(stream.number)
            self._turns.append(stream)
            self._wake.set()

    def ended(self, stream: StreamTransport) -> None:
        if self._streams.get(stream.number) is stream:
            del self._streams[stream.number]

    def _next(self) -> bytes | None:
        if self._control:
            return self._control.popleft()
        while self._turns:
            stream = self._turns.popleft()
            self._waiting.discard(stream.number)
            if (frame := stream.next_chunk()) is not None:
                return frame
        return None
