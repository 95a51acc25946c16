"""``NodeDialer``: the only way to reach a node. Two adapters, and the one that chooses between them.

    tunnel    over the WebSocket that the node dialled (the relay, within this process)
    direct    to the address the node listens on

Every request carries a stream token for one target on one node, which the node checks.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler

from controlplane.nodes.inventory import Inventory
from dataplane.serving.tokens import AUTHORIZATION, Signer, Target
from dataplane.tunnel.mux import Mux, TunnelFull

CONNECT_SECONDS = 5.0


class NodeUnreachable(Exception):
    """No answer from the node. The message is fit for callers."""


class NodeDialer(Protocol):
    """Opens streams to nodes."""

    async def post(
        self, node: str, target: Target, path: str, body: bytes, *, idle_seconds: float
    ) -> aiohttp.ClientResponse:
        """Send to ``target`` on ``node``; return at the head of the answer, which must be closed. ``path`` is below
        the target's, such as ``/v1/completions``. Raises: NodeUnreachable."""


class Tunnels:
    """The tunnels that stand, by node: a newer one takes the older's place."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Mux, aiohttp.ClientSession]] = {}

    def add(self, node: str, mux: Mux) -> aiohttp.ClientSession:
        """A node has dialled; close the session when it is over."""
        older = self._known.get(node)
        if older is not None:
            older[0].end()
        session = aiohttp.ClientSession(
            connector=_TunnelConnector(mux),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=1 << 16,
        )
        self._known[node] = mux, session
        return session

    def remove(self, node: str, mux: Mux) -> None:
        """It is over, unless another has taken its place."""
        known = self._known.get(node)
        if known is not None and known[0] is mux:
            del self._known[node]

    def session(self, node: str) -> aiohttp.ClientSession | None:
        """HTTP through a node's tunnel."""
        known = self._known.get(node)
        return None if known is None else known[1]


class TunnelDialer:
    """Through the tunnel that the node dialled."""

    def __init__(self, tunnels: Tunnels, authorize: Callable[[str, Target], str]) -> None:
        self._tunnels = tunnels
        self._authorize = authorize

    async def post(
        self, node: str, target: Target, path: str, body: bytes, *, idle_seconds: float
    ) -> aiohttp.ClientResponse:
        session = self._tunnels.session(node)
        if session is None:
            raise NodeUnreachable("its node has no tunnel")
        return await _post(session, "http://node", self._authorize(node, target), target, path, body, idle_seconds)


class DirectDialer:
    """To the address that the node has declared. ``ca_file``, and ``certificate`` with its key, are for TLS."""

    def __init__(
        self,
        address_of: Callable[[str], str | None],
        authorize: Callable[[str, Target], str],
        *,
        ca_file: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        self._address_of = address_of
        self._authorize = authorize
        self._tls = (ca_file, certificate, key)
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, node: str, target: Target, path: str, body: bytes, *, idle_seconds: float
    ) -> aiohttp.ClientResponse:
        address = self._address_of(node)
        if address is None:
            raise NodeUnreachable("its node does not listen")
        if self._session is None:
            context = await asyncio.to_thread(_tls, *self._tls)
            self._session = self._session or aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=1024, keepalive_timeout=15),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                read_bufsize=1 << 16,
            )
        return await _post(self._session, address, self._authorize(node, target), target, path, body, idle_seconds)

    async def close(self) -> None:
        """End its connections."""
        if self._session is not None:
            await self._session.close()


class ChosenDialer:
    """Directly where the node listens, else through its tunnel."""

    def __init__(self, address_of: Callable[[str], str | None], direct: NodeDialer, tunnel: NodeDialer) -> None:
        self._address_of = address_of
        self._direct = direct
        self._tunnel = tunnel

    async def post(
        self, node: str, target: Target, path: str, body: bytes, *, idle_seconds: float
    ) -> aiohttp.ClientResponse:
        dialer = self._tunnel if self._address_of(node) is None else self._direct
        return await dialer.post(node, target, path, body, idle_seconds=idle_seconds)


class StreamTokens:
    """Signs with each node's own key, which is derived from its bearer: a new registration has a new one, a restart of
    the control plane the same."""

    def __init__(self, inventory: Inventory, derive: Callable[[bytes], bytes], signer: Signer) -> None:
        self._inventory = inventory
        self._derive = derive
        self._signer = signer

    def key_of(self, token_hash: str) -> str:
        """The key of the registration with this bearer."""
        return self._derive(f"stream tokens {token_hash}".encode()).hex()

    def __call__(self, node: str, target: Target) -> str:
        """A token. Raises: NodeUnreachable for a node that is not there, or another tenant's."""
        known = self._inventory.nodes.get(node)
        if known is None or known.tenant != target.tenant:
            raise NodeUnreachable("its node is not registered here")
        return self._signer.token(self.key_of(known.token_hash), node, target)


class _TunnelConnector(aiohttp.BaseConnector):
    """Connections that are streams of one tunnel; aiohttp keeps and uses them again as it does others."""

    def __init__(self, mux: Mux) -> None:
        super().__init__(limit=0, keepalive_timeout=30)
        self._mux = mux

    async def _create_connection(self, *_: object) -> ResponseHandler:
        protocol = ResponseHandler(asyncio.get_running_loop())
        try:
            self._mux.open(protocol)
        except TunnelFull as full:
            raise aiohttp.ClientConnectionError(str(full)) from None
        return protocol


async def _post(
    session: aiohttp.ClientSession,
    address: str,
    token: str,
    target: Target,
    path: str,
    body: bytes,
    idle_seconds: float,
) -> aiohttp.ClientResponse:
    headers = {AUTHORIZATION: token, "Content-Type": "application/json", "Accept-Encoding": "identity"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=idle_seconds)

    def send() -> Awaitable[aiohttp.ClientResponse]:
        url = f"{address}{target.path}{path}"
        return session.post(url, data=body, headers=headers, timeout=timeout, allow_redirects=False)

    try:
        return await post_again(send)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RuntimeError) as error:
        raise NodeUnreachable(f"its node cannot be reached ({type(error).__name__})") from None


async def post_again(post: Callable[[], Awaitable[aiohttp.ClientResponse]]) -> aiohttp.ClientResponse:
    """Once more where a kept connection turned out to be closed: what is asked of nodes here has no effect to fear."""
    try:
        return await post()
    except aiohttp.ServerDisconnectedError:
        return await post()


def _tls(ca_file: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context
