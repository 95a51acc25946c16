"""A Streamable HTTP server, one connection a call: every address judged, secrets in headers, a bounded answer."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import anyio
import httpx2
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from dataplane.egress import EgressRefused, Lookup, check
from dataplane.mcp.conversation import Conversation, Streams, connected, meaning
from dataplane.mcp.failures import McpFailed
from dataplane.mcp.guard import MESSAGE_BYTES_MOST, UNREAD_MOST, VALUES_MOST, Guard, GuardedWriter, Heard, values_most
from dataplane.protocol import McpEndpoint
from dataplane.scrubbing import Scrubber

T = TypeVar("T")
CONNECTION_BYTES_MOST = 3 * MESSAGE_BYTES_MOST
"""All that one connection may bring: the list of tools, one answer, and what surrounds them."""
_OWN_HEADERS = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept", "accept-encoding"})


_ENCODINGS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
"""In any other an event could hold values that nobody counted."""


class _CheckedTransport(httpx2.AsyncBaseTransport):
    """Resolves names itself and connects to judged addresses only; counts every byte that comes back."""

    def __init__(self, endpoint: McpEndpoint, lookup: Lookup) -> None:
        self._endpoint, self._lookup = endpoint, lookup
        self._inner = httpx2.AsyncHTTPTransport(trust_env=False, http2=False)
        self.failure: McpFailed | None = None
        self.left = CONNECTION_BYTES_MOST

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await self._send(request)
            if 300 <= response.status_code < 400:
                raise McpFailed("mcp_error", f"HTTP {response.status_code}: redirects are not followed")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise McpFailed("mcp_garbage", "the server compresses, which nobody asked it to")
            encoding = (response.charset_encoding or "utf-8").lower()
            if encoding not in _ENCODINGS and "event-stream" in response.headers.get("content-type", "").lower():
                raise McpFailed("mcp_garbage", f"the server sends {encoding[:40]!r}; MCP is UTF-8")
        except EgressRefused as refused:
            raise self._fail(McpFailed("egress_refused", self._remedy(refused))) from refused
        except McpFailed as failure:
            raise self._fail(failure) from failure
        if not isinstance(response.stream, httpx2.AsyncByteStream):
            raise httpx2.ReadError("the answer has no stream")
        response.stream = _Counted(response.stream, self)
        return response

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.host
        private, in_clear = self._endpoint.private_allowed, request.url.scheme == "http"
        try:
            addresses = [str(ipaddress.ip_address(host.strip("[]")))]
        except ValueError:
            addresses = await self._lookup(host)
        for text in addresses:
            named = text if text == host else f"{host} resolves to {text}, which"
            secret_in_clear = in_clear and bool(self._endpoint.secrets)
            check(ipaddress.ip_address(text), named, private_allowed=private, loopback_only=secret_in_clear)
        if not addresses:
            raise httpx2.ConnectError(f"{host} has no address")
        extensions = {**request.extensions, "sni_hostname": host}
        for last, text in enumerate(addresses, 1 - len(addresses)):
            # The Host header is set already, so that only the connection goes to the address.
            sent = httpx2.Request(
                request.method,
                request.url.copy_with(host=text),
                headers=request.headers,
                stream=request.stream,
                extensions=extensions,
            )
            try:
                return await self._inner.handle_async_request(sent)
            except httpx2.ConnectError:
                if last == 0:
                    raise
        raise httpx2.ConnectError(f"{host} does not answer")

    def _remedy(self, refused: EgressRefused) -> str:
        parts = urlsplit(self._endpoint.url)
        at = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
        fix = f"list it: `stockade up --private-host {at}`" if refused.listable else "no setting opens it"
        return f"egress refused: {refused}; {fix}"

    def _fail(self, failure: McpFailed) -> httpx2.TransportError:
        self.failure = self.failure or failure
        return httpx2.ReadError(str(failure))

    def count(self, size: int) -> None:
        """Raises once the connection has brought too much."""
        self.left -= size
        if self.left < 0:
            raise self._fail(McpFailed("mcp_flood", f"the server sent more than {CONNECTION_BYTES_MOST} bytes"))

    def count_values(self, values: int) -> None:
        """Raises once one answer, a body or a stream of events, holds too many to be parsed."""
        if values > VALUES_MOST:
            raise self._fail(McpFailed("mcp_flood", f"one answer of the server holds more than {VALUES_MOST} values"))

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Counted(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, transport: _CheckedTransport) -> None:
        self._inner, self._transport = inner, transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        values = 0
        async for piece in self._inner:
            self._transport.count(len(piece))
            values += values_most(piece)
            self._transport.count_values(values)
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


async def perform(
    endpoint: McpEndpoint, act: Callable[[Conversation], Awaitable[T]], seconds: float, lookup: Lookup
) -> T:
    """``act`` in a conversation of its own, all of it within ``seconds``. Raises ``McpFailed``, scrubbed of secrets."""
    scrubber = Scrubber(secret.value for secret in endpoint.secrets)
    try:
        return await _perform(endpoint, act, seconds, lookup)
    except McpFailed as failure:
        raise McpFailed(failure.reason, scrubber.text(str(failure)), retryable=failure.retryable) from None


async def _perform(
    endpoint: McpEndpoint, act: Callable[[Conversation], Awaitable[T]], seconds: float, lookup: Lookup
) -> T:
    transport = _CheckedTransport(endpoint, lookup)
    headers = {name: value for name, value in endpoint.headers.items() if name.lower() not in _OWN_HEADERS}
    for secret in endpoint.secrets:
        headers = {name: value for name, value in headers.items() if name.lower() != secret.header.lower()}
        headers[secret.header] = secret.format.replace("{}", secret.value)
    headers["Accept-Encoding"] = "identity"
    streams = _RemoteStreams(endpoint.url, transport, headers, seconds)
    try:
        with anyio.fail_after(seconds):
            async with connected(streams.opened()) as conversation:
                return await act(conversation)
    except TimeoutError:
        raise McpFailed("mcp_timeout", f"the server did not answer within {seconds:g} s", retryable=True) from None
    except Exception as error:  # not a cancellation, which is the caller's, whatever the server has done
        await anyio.lowlevel.checkpoint_if_cancelled()  # nor one that a failure beside it has covered
        failure = transport.failure or streams.failure or meaning(error)
        if failure is None:
            raise
        raise failure from None


class _RemoteStreams:
    """The client's HTTP transport, with a guard between it and the client."""

    def __init__(self, url: str, transport: _CheckedTransport, headers: dict[str, str], seconds: float) -> None:
        self._url, self._transport, self._headers, self._seconds = url, transport, headers, seconds
        self.failure: McpFailed | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Streams]:
        guard = Guard()
        client = httpx2.AsyncClient(
            transport=self._transport,
            headers=self._headers,
            timeout=self._seconds,
            trust_env=False,
            follow_redirects=False,
        )
        async with (
            client,
            streamable_http_client(self._url, http_client=client, max_sse_event_size=MESSAGE_BYTES_MOST) as (
                read,
                write,
            ),
            anyio.create_task_group() as tasks,
        ):
            said, heard = anyio.create_memory_object_stream[Heard](UNREAD_MOST)
            told, tells = anyio.create_memory_object_stream[SessionMessage](UNREAD_MOST)

            async def listen() -> None:
                with said:
                    async for item in read:
                        if isinstance(item, SessionMessage):
                            try:
                                if not guard.admit(item.message, 0):
                                    continue
                            except McpFailed as failure:
                                self.failure = self.failure or failure
                                return
                        await said.send(item)

            async def tell() -> None:
                async with write:
                    async for message in tells:
                        await write.send(message)

            with said, heard, told, tells:
                tasks.start_soon(listen)
                tasks.start_soon(tell)
                try:
                    yield heard, GuardedWriter(told, guard)
                finally:
                    tasks.cancel_scope.cancel()
