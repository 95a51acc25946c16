"""The port to model servers, and its adapter: external ones by URL with a key of the secret store, those on nodes
through the dialer."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from controlplane.inference.values import Replica
from controlplane.nodes.dialing import NodeDialer, NodeUnreachable, post_again
from dataplane.egress import CheckedResolver, EgressRefused, check_literal
from dataplane.serving.tokens import Target

CONNECT_SECONDS = 5.0
CONNECTIONS_MOST = 1024
DRAIN_SECONDS = 0.25
KeyOf = Callable[[Replica], Awaitable[str | None]]
"""The key to call an external replica with; None without one. Raises: Unreachable if it cannot be had."""


class Unreachable(Exception):
    """No answer, or it broke off: another replica may be tried. The message is fit for callers."""


class UpstreamAnswer(Protocol):
    """An answer that has begun. ``close`` it; before its end that aborts the call at the server."""

    @property
    def status(self) -> int: ...

    @property
    def retry_after(self) -> str | None: ...

    @property
    def key(self) -> str | None:
        """What the server was called with, and may send back."""

    async def read(self) -> bytes:
        """The next bytes of the body; none at its end. Raises: Unreachable."""

    async def drain(self) -> None:
        """Wait a moment for the end of the body, so that the connection can be used again."""

    def close(self) -> None: ...


class Upstream(Protocol):
    """Reaches replicas."""

    async def post(self, replica: Replica, path: str, body: bytes, *, idle_seconds: float) -> UpstreamAnswer:
        """Send; return at the head of the answer. ``path`` is such as ``/chat/completions``. ``idle_seconds``: the
        longest silence. Raises: Unreachable."""


class HttpAnswer:
    """An aiohttp response as ``UpstreamAnswer``."""

    def __init__(self, response: aiohttp.ClientResponse, key: str | None = None) -> None:
        self._response = response
        self.key = key

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def retry_after(self) -> str | None:
        return self._response.headers.get("Retry-After")

    async def read(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unreachable(f"its answer broke off ({type(error).__name__})") from None

    async def drain(self) -> None:
        with suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while await self._response.content.readany():
                    pass

    def close(self) -> None:
        # At the end of the body the connection has been given back already, and this does nothing.
        self._response.close()


class ExternalServers:
    """``Upstream`` for replicas with a URL. ``private_hosts`` are ``host:port`` that may be reached though private."""

    def __init__(self, key_of: KeyOf, private_hosts: frozenset[str]) -> None:
        self._key_of = key_of
        self._private_hosts = private_hosts
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def post(self, replica: Replica, path: str, body: bytes, *, idle_seconds: float) -> UpstreamAnswer:
        url = (replica.url or "").rstrip("/") + path
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        private = f"{parts.hostname}:{port}" in self._private_hosts
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if (key := await self._key_of(replica)) is not None:
            if not key.isascii() or not key.isprintable():
                raise Unreachable("its key cannot be sent in a header")
            headers["Authorization"] = f"Bearer {key}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=idle_seconds)
        try:
            check_literal(parts.hostname or "", private_allowed=private)
            response = await post_again(
                lambda: self._session(private).post(
                    url, data=body, headers=headers, timeout=timeout, allow_redirects=False
                )
            )
        except EgressRefused as refused:
            raise Unreachable(f"its address may not be reached: {refused}") from None
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError, ValueError) as error:
            raise Unreachable(f"it cannot be reached ({type(error).__name__})") from None
        return HttpAnswer(response, key)

    async def close(self) -> None:
        """End all connections."""
        for session in self._sessions.values():
            await session.close()
        # aiohttp closes TLS transports on the loop's next turns.
        await asyncio.sleep(0)

    def _session(self, private: bool) -> aiohttp.ClientSession:
        found = self._sessions.get(private)
        if found is None:
            connector = aiohttp.TCPConnector(
                resolver=CheckedResolver(private_allowed=private), limit=CONNECTIONS_MOST, keepalive_timeout=15
            )
            found = self._sessions[private] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                read_bufsize=1 << 16,
            )
        return found


class NodeServers:
    """``Upstream`` for replicas on nodes."""

    def __init__(self, dialer: NodeDialer) -> None:
        self._dialer = dialer

    async def post(self, replica: Replica, path: str, body: bytes, *, idle_seconds: float) -> UpstreamAnswer:
        target = Target(tenant=replica.tenant, kind="models", name=replica.id)
        try:
            response = await self._dialer.post(
                replica.node or "", target, f"/v1{path}", body, idle_seconds=idle_seconds
            )
        except NodeUnreachable as gone:
            raise Unreachable(str(gone)) from None
        return HttpAnswer(response)


class AnyServers:
    """``Upstream`` for all replicas."""

    def __init__(self, nodes: Upstream, external: Upstream) -> None:
        self._nodes = nodes
        self._external = external

    async def post(self, replica: Replica, path: str, body: bytes, *, idle_seconds: float) -> UpstreamAnswer:
        chosen = self._external if replica.node is None else self._nodes
        return await chosen.post(replica, path, body, idle_seconds=idle_seconds)
