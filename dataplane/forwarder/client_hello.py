"""The server's name inside the first message of a TLS handshake (RFC 8446, RFC 6066), read without trusting it."""

from __future__ import annotations

from dataclasses import dataclass

HELLO_BYTES_MOST = 64 * 1024
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _HOST_NAME = 0, 0
_ENCRYPTED = frozenset({0xFE0D, 0xFE0A, 0xFE09, 0xFE08, 0xFFCE})  # encrypted ClientHello and its drafts


class NotTls(Exception):
    """These bytes begin no TLS handshake."""


@dataclass(frozen=True, kw_only=True)
class ClientHello:
    """``server_name`` in lower case, ``None`` if there is none; ``is_encrypted``: another one may be inside."""

    server_name: str | None
    is_encrypted: bool


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise NotTls("it ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> _Reader:
        return _Reader(self.take(self.number(width)))


def read(data: bytes) -> ClientHello | None:
    """What the bytes so far say; ``None`` if more are needed. Raises ``NotTls``."""
    message = _message(data)
    return None if message is None else _parsed(_Reader(message))


def _message(data: bytes) -> bytes | None:
    """The first handshake message, put together from its records."""
    whole, at = b"", 0
    while True:
        header = data[at : at + 5]
        if header[:1] not in (b"", bytes((_HANDSHAKE,))) or header[1:2] not in (b"", b"\x03"):
            raise NotTls("it is no TLS record")
        if len(header) < 5:
            return None
        size = int.from_bytes(header[3:5], "big")
        if not 0 < size <= 16_384:
            raise NotTls("a record's length is not allowed")
        whole += data[at + 5 : at + 5 + size]
        if whole[:1] != bytes((_CLIENT_HELLO,)) and whole:
            raise NotTls("its first message is no ClientHello")
        if len(whole) >= 4:
            end = 4 + int.from_bytes(whole[1:4], "big")
            if end > HELLO_BYTES_MOST:
                raise NotTls(f"its ClientHello is above {HELLO_BYTES_MOST} bytes")
            if len(whole) >= end:
                return whole[4:end]
        at += 5 + size
        if at > len(data):
            return None


def _parsed(hello: _Reader) -> ClientHello:
    hello.take(2 + 32)  # version and random
    hello.vector(1)  # session
    hello.vector(2)  # ciphers
    hello.vector(1)  # compression
    if not hello:
        return ClientHello(server_name=None, is_encrypted=False)
    extensions = hello.vector(2)
    name: str | None = None
    seen: set[int] = set()
    while extensions:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind in seen:
            raise NotTls("an extension is there twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(body)
    return ClientHello(server_name=name, is_encrypted=bool(seen & _ENCRYPTED))


def _server_name(body: _Reader) -> str:
    names = body.vector(2)
    if names.number(1) != _HOST_NAME:
        raise NotTls("its server name is of an unknown kind")
    data = names.take(names.number(2))
    if names or body or not data:
        raise NotTls("it names more than one server, or none")
    try:
        return data.decode("ascii").lower()
    except UnicodeDecodeError:
        raise NotTls("its server name is not ASCII") from None
