"""The server's name inside the first message of a TLS handshake (RFC 8446, RFC 6066), read without trusting it."""

from __future__ import annotations

from dataclasses import dataclass

HELLO_BYTES_MOST = 16 * 1024
RECORDS_MOST = 16
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


class HelloReader:
    """Puts the first handshake message together from records as they come; each byte is looked at once."""

    def __init__(self) -> None:
        self._header, self._message = bytearray(), bytearray()
        self._records = self._left = 0  # records begun; bytes that the current one still owes

    def feed(self, data: bytes) -> ClientHello | None:
        """What the bytes so far say; ``None`` if more are needed. Raises ``NotTls``. Nothing may follow an answer."""
        at = 0
        while at < len(data):
            if self._left:
                part = data[at : at + self._left]
                self._left -= len(part)
                self._message += part
            else:
                part = data[at : at + 5 - len(self._header)]
                self._header += part
                self._begin_record()
            at += len(part)
            if (end := self._end()) is not None and len(self._message) >= end:
                return _parsed(_Reader(bytes(self._message[4:end])))
        return None

    def _begin_record(self) -> None:
        """Judge as much of a record's header as there is; whole, it begins the record."""
        header = self._header
        if header[0] != _HANDSHAKE or bytes(header[1:2]) not in (b"", b"\x03"):
            raise NotTls("it is no TLS record")
        if self._records == RECORDS_MOST:
            raise NotTls(f"its ClientHello is in more than {RECORDS_MOST} records")
        if len(header) < 5:
            return
        size = int.from_bytes(header[3:5], "big")
        if not 0 < size <= 16_384:
            raise NotTls("a record's length is not allowed")
        self._left, self._records = size, self._records + 1
        header.clear()

    def _end(self) -> int | None:
        """Where the message ends; ``None`` if its length has not come."""
        if self._message and self._message[0] != _CLIENT_HELLO:
            raise NotTls("its first message is no ClientHello")
        if len(self._message) < 4:
            return None
        end = 4 + int.from_bytes(self._message[1:4], "big")
        if end > HELLO_BYTES_MOST:
            raise NotTls(f"its ClientHello is above {HELLO_BYTES_MOST} bytes")
        return end


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
