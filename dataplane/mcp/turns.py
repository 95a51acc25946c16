"""How many calls of remote MCP servers go on at once: an answer takes memory and time of the node while it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from dataplane.mcp.failures import McpFailed

CALLS_MOST = 16
SERVER_CALLS_MOST = 4


@dataclass(slots=True)
class _Server:
    free: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(SERVER_CALLS_MOST))
    users: int = 0


class RemoteTurns:
    """One for the node. A server that does not answer holds ``SERVER_CALLS_MOST`` of its turns, and no more."""

    def __init__(self) -> None:
        self._free = anyio.Semaphore(CALLS_MOST)
        self._servers: dict[str, _Server] = {}

    @asynccontextmanager
    async def turn(self, server_id: str, seconds: float) -> AsyncIterator[None]:
        """Wait for a turn, at most ``seconds``. Raises ``McpFailed``."""
        server = self._servers.setdefault(server_id, _Server())
        server.users += 1
        held: list[anyio.Semaphore] = []
        try:
            with anyio.move_on_after(seconds):
                for one in (server.free, self._free):
                    await one.acquire()
                    held.append(one)
            if len(held) < 2:
                why = f"{SERVER_CALLS_MOST} calls of the server, or {CALLS_MOST} of any on this node, are going on"
                raise McpFailed("mcp_busy", f"{why}; call it less at once, or of more nodes", retryable=True)
            yield
        finally:
            for one in held:
                one.release()
            server.users -= 1
            if not server.users:
                del self._servers[server_id]
