"""One stream of a tunnel as an asyncio transport."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from dataplane.tunnel import frames
from dataplane.tunnel.frames import WINDOW_BYTES, FrameBroken, Kind

HIGH_BYTES = 64 * 1024
LOW_BYTES = 16 * 1024


class Carrier(Protocol):
    """What a stream needs of its tunnel."""

    def control(self, frame: bytes) -> None:
        """Send before any data."""

    def has_data(self, stream: StreamTransport) -> None:
        """It may send: when its turn comes, ``next_chunk`` is asked."""

    def ended(self, stream: StreamTransport) -> None:
        """Forget it."""


class StreamTransport(asyncio.Transport):
    """Bytes of one stream. Sending waits for credit, then for its turn; what its protocol does not take now is kept,
    never more than the window."""

    def __init__(self, carrier: Carrier, number: int) -> None:
        super().__init__({"peername": ("tunnel", number)})
        self.number = number
        self._carrier = carrier
        self._protocol: asyncio.Protocol | None = None
        self._out = bytearray()
        self._credit = WINDOW_BYTES
        self._in = bytearray()
        self._window = WINDOW_BYTES
        self._taken = 0
        self._high, self._low = HIGH_BYTES, LOW_BYTES
        self._reading_paused = False
        self._writing_paused = False
        self._closing = False
        self._over = False
        self._error: Exception | None = None

    def connect(self, protocol: asyncio.Protocol) -> None:
        """Give it the protocol that reads and writes."""
        self._protocol = protocol
        protocol.connection_made(self)

    # --- asyncio.Transport

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if isinstance(protocol, asyncio.Protocol):
            self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None  # noqa: S101 - asked by its protocol
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._reading_paused and not self._closing

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._deliver()
        if self._over:
            self._finish()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._closing or not data:
            return
        self._out += data
        if len(self._out) > self._high and not self._writing_paused:
            self._writing_paused = True
            if self._protocol is not None:
                self._protocol.pause_writing()
        if self._credit:
            self._carrier.has_data(self)

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return len(self._out)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = min(HIGH_BYTES, HIGH_BYTES if high is None else high)
        self._low = min(self._high // 4, self._high if low is None else low)

    def close(self) -> None:
        """End it once all that was written is sent."""
        if not self._closing:
            self._closing = True
            if not self._out:
                self.lost(None, told=False)

    def abort(self) -> None:
        """End it now."""
        self.lost(None, told=False)

    # --- the tunnel's side

    def next_chunk(self) -> bytes | None:
        """A DATA frame, if there is something to send and credit to send it with."""
        if self._over or not self._out or not self._credit:
            return None
        size = min(len(self._out), self._credit, frames.CHUNK_BYTES)
        frame = frames.encode(Kind.DATA, self.number, self._out[:size])
        del self._out[:size]
        self._credit -= size
        if self._out and self._credit:
            self._carrier.has_data(self)
        if self._writing_paused and len(self._out) <= self._low:
            self._writing_paused = False
            if self._protocol is not None:
                self._protocol.resume_writing()
        if self._closing and not self._out:
            # After this chunk: whoever sends it asks for the next turn's frames then.
            asyncio.get_running_loop().call_soon(self.lost, None)
        return frame

    def received(self, data: bytes) -> None:
        """A DATA frame's payload. Raises: FrameBroken if the peer had no credit for it."""
        self._window -= len(data)
        if self._window < 0:
            raise FrameBroken("more data than there was credit for")
        if self._over:
            return
        self._in += data
        self._deliver()

    def credited(self, amount: int) -> None:
        """The peer has taken so much. Raises: FrameBroken for more than was sent."""
        self._credit += amount
        if self._credit > WINDOW_BYTES:
            raise FrameBroken("more credit than was used")
        if self._out:
            self._carrier.has_data(self)

    def lost(self, error: Exception | None, told: bool = False) -> None:
        """It is over. ``told``: the peer said so, or is gone."""
        if self._over:
            return
        self._over = self._closing = True
        self._error = error
        self._out.clear()
        if not told:
            self._in.clear()
            self._carrier.control(frames.encode(Kind.CLOSE, self.number))
        self._carrier.ended(self)
        self._finish()

    def _finish(self) -> None:
        if self._in and self._reading_paused and self._error is None:
            return  # its reader gets the rest first
        self._deliver()
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            # Never from within a call of the protocol itself.
            asyncio.get_running_loop().call_soon(protocol.connection_lost, self._error)

    def _deliver(self) -> None:
        if self._reading_paused or self._protocol is None or not self._in:
            return
        data = bytes(self._in)
        self._in.clear()
        self._taken += len(data)
        if self._taken >= WINDOW_BYTES // 2 and not self._over:
            self._window += self._taken
            self._carrier.control(frames.credit(self.number, self._taken))
            self._taken = 0
        self._protocol.data_received(data)
