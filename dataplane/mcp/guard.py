"""What an MCP server may say, counted. A server that says more than it was asked for is cut off.

``LineSplitter`` bounds one message of a stdio server; ``Guard`` what comes between two answers, on any transport.
Notifications are dropped: nothing here waits for them. Requests of the server (sampling, elicitation, roots) pass, the
MCP client refuses each with an error, and their number is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import (
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)

from dataplane.mcp.failures import McpFailed

MESSAGE_BYTES_MOST = 4 * 1024 * 1024
VALUES_MOST = 262_144
"""Values in one message: small ones cost far more memory than they take on the wire."""
UNREAD_MOST = 64
"""Messages between the streams and the client."""
UNASKED_MOST = 1000
UNASKED_BYTES_MOST = 1024 * 1024
REQUESTS_MOST = 16
_SHOWN = 80

Heard = SessionMessage | Exception
Outbox = MemoryObjectSendStream[SessionMessage]


class LineSplitter:
    """Cuts a stdio server's output into lines; keeps at most one incomplete line of ``MESSAGE_BYTES_MOST``."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that end in ``data``. Raises ``McpFailed`` for one that is too long."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            line = bytes(self._kept) + data[start:end] if self._kept else data[start:end]
            self._kept.clear()
            start = end + 1
            _check_size(len(line))
            if line.strip():
                yield line
        self._kept += data[start:]
        _check_size(len(self._kept))

    @property
    def in_mid_message(self) -> bool:
        """Whether the last line has no end."""
        return bool(self._kept.strip())


def _check_size(size: int) -> None:
    if size > MESSAGE_BYTES_MOST:
        raise McpFailed("mcp_flood", f"one message of the server is above {MESSAGE_BYTES_MOST} bytes")


def values_most(data: bytes) -> int:
    """At least the values in a piece of JSON, told without parsing it."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def parse(line: bytes) -> JSONRPCMessage:
    """One message. Raises ``McpFailed`` for anything else, and for one that would take too much memory."""
    if values_most(line) > VALUES_MOST:
        raise McpFailed("mcp_flood", f"one message of the server holds more than {VALUES_MOST} values")
    try:
        return jsonrpc_message_adapter.validate_json(line, by_name=False)
    except (ValueError, RecursionError):
        shown = ascii(line[:_SHOWN].decode(errors="replace"))
        hint = "a stdio server writes MCP messages to stdout and everything else to stderr"
        raise McpFailed("mcp_garbage", f"the server said what is no MCP message: {shown}; {hint}") from None


class Guard:
    """Counts what one connection says. ``answers`` is how many of our requests it has answered."""

    def __init__(self) -> None:
        self.answers = 0
        self._waiting: set[int | str] = set()
        self._unasked = self._unasked_bytes = self._requests = 0

    def sent(self, message: JSONRPCMessage) -> None:
        """Remember what was asked."""
        if isinstance(message, JSONRPCRequest):
            self._waiting.add(message.id)

    def admit(self, message: JSONRPCMessage, size_bytes: int) -> bool:
        """Whether the client should see it. Raises ``McpFailed`` when it was one too many."""
        if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id in self._waiting:
            self._waiting.discard(message.id)
            self.answers += 1
            self._unasked = self._unasked_bytes = self._requests = 0
            return True
        self._unasked += 1
        self._unasked_bytes += size_bytes
        if self._unasked > UNASKED_MOST or self._unasked_bytes > UNASKED_BYTES_MOST:
            what = "notifications" if isinstance(message, JSONRPCNotification) else "messages"
            raise McpFailed("mcp_flood", f"the server sends {what} that nobody asked for, without an end")
        if isinstance(message, JSONRPCRequest):
            self._requests += 1
            if self._requests > REQUESTS_MOST:
                asks = ascii(message.method[:_SHOWN])
                raise McpFailed("mcp_requests", f"the server keeps asking for {asks}; servers get nothing here")
            return True
        return False


class GuardedWriter:
    """The write side: counts what is asked, and never waits for a server that does not read."""

    def __init__(self, inner: Outbox, guard: Guard) -> None:
        self._inner, self._guard = inner, guard
        self.deaf = False

    async def send(self, item: SessionMessage, /) -> None:
        """Raises ``BrokenResourceError`` when too much is unread."""
        self._guard.sent(item.message)
        try:
            self._inner.send_nowait(item)
        except anyio.WouldBlock:
            self.deaf = True
            raise anyio.BrokenResourceError from None
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> GuardedWriter:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
