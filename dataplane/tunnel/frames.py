"""The tunnel's messages: each WebSocket message is one frame, a kind and a stream's number, then the payload.

    OPEN    relay → node   a new stream
    DATA    both           at most ``CHUNK_BYTES`` of it
    CREDIT  both           the reader has taken so many bytes: as many more may be sent
    CLOSE   both           the stream is over, whatever its state

A sender has ``WINDOW_BYTES`` of credit on a new stream; more than its credit is a broken peer.
"""

from __future__ import annotations

import struct
from enum import IntEnum

CHUNK_BYTES = 16 * 1024
WINDOW_BYTES = 256 * 1024
STREAMS_MOST = 512
MESSAGE_BYTES_MOST = CHUNK_BYTES + 64
PROTOCOL = "stockade-tunnel-1"
"""The WebSocket subprotocol."""
_HEAD = struct.Struct(">BI")
_CREDIT = struct.Struct(">I")


class Kind(IntEnum):
    """Of a frame."""

    OPEN = 1
    DATA = 2
    CREDIT = 3
    CLOSE = 4


class FrameBroken(Exception):
    """The peer does not speak this protocol; the tunnel ends."""


def encode(kind: Kind, stream: int, payload: bytes | bytearray | memoryview = b"") -> bytes:
    """A frame's bytes."""
    return _HEAD.pack(kind, stream) + payload


def credit(stream: int, taken: int) -> bytes:
    """A CREDIT frame's bytes."""
    return encode(Kind.CREDIT, stream, _CREDIT.pack(taken))


def decode(message: bytes) -> tuple[Kind, int, bytes]:
    """Kind, stream, payload. Raises: FrameBroken."""
    if not _HEAD.size <= len(message) <= MESSAGE_BYTES_MOST:
        raise FrameBroken(f"a frame of {len(message)} bytes")
    kind, stream = _HEAD.unpack_from(message)
    payload = message[_HEAD.size :]
    try:
        known = Kind(kind)
    except ValueError:
        raise FrameBroken(f"a frame of kind {kind}") from None
    expected = {Kind.OPEN: 0, Kind.CLOSE: 0, Kind.CREDIT: _CREDIT.size}.get(known)
    if expected is not None and len(payload) != expected:
        raise FrameBroken(f"a {known.name} frame with {len(payload)} bytes")
    if len(payload) > CHUNK_BYTES:
        raise FrameBroken(f"a DATA frame with {len(payload)} bytes")
    return known, stream, payload


def taken(payload: bytes) -> int:
    """A CREDIT frame's amount."""
    amount: int = _CREDIT.unpack(payload)[0]
    return amount
