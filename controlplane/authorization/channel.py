"""Frames over a socket, without waiting: a 4-byte length and msgpack, both ways."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

_LENGTH = struct.Struct("<I")
# One for all channels, which are read on one thread: allocating it for each read costs more than reading.
_ROOM = memoryview(bytearray(1 << 16))
_ENCODER = msgspec.msgpack.Encoder()


class Channel:
    """Our end of ``ours``. ``on_frame`` gets each frame that arrives; ``on_hang_up`` is called once, when the other
    side is gone, and not after ``close``."""

    def __init__(self, ours: socket.socket, on_frame: Callable[[bytes], None], on_hang_up: Callable[[], None]) -> None:
        ours.setblocking(False)
        self._socket = ours
        self._on_frame = on_frame
        self._on_hang_up = on_hang_up
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._received = bytearray()
        self._is_open = True
        self._loop.add_reader(ours, self.read)

    def send(self, value: Any) -> None:
        """Send one frame, now or when there is room."""
        body = _ENCODER.encode(value)
        frame = _LENGTH.pack(len(body)) + body
        if self._unsent:
            self._unsent += frame
            return
        try:
            sent = self._socket.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it died; the reader will see that
        if sent < len(frame):
            self._unsent += frame[sent:]
            self._loop.add_writer(self._socket, self._flush)

    def send_raw(self, message: bytes, *passed: socket.socket) -> None:
        """Send bytes outside of any frame, with sockets. Raises: OSError if they cannot be sent now."""
        if self._unsent:
            raise BlockingIOError("earlier frames are not sent yet")
        if passed:
            socket.send_fds(self._socket, [message], [one.fileno() for one in passed])
        else:
            self._socket.send(message)

    def read(self) -> None:
        """Take what has arrived."""
        if not self._is_open:
            return
        try:
            size = self._socket.recv_into(_ROOM)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self.close()
            self._on_hang_up()
            return
        self._received += _ROOM[:size]
        while self._is_open and len(self._received) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._received)[0]
            if len(self._received) < end:
                return
            frame = bytes(self._received[_LENGTH.size : end])
            del self._received[:end]
            self._on_frame(frame)

    def close(self) -> None:
        """Hang up."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _flush(self) -> None:
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._socket)
