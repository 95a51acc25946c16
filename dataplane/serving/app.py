"""The node's local HTTP application. Who asks has a stream token for exactly what is asked; everything else is 404.

    POST /models/{replica}/v1/…        passed to the model server's loopback port

It is reached by the tunnel, and where the node listens, directly: the same application.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import structlog
from aiohttp import web

from dataplane.protocol import Registered
from dataplane.serving import tokens
from dataplane.serving.tokens import AUTHORIZATION, Target, TokenRefused

MODEL_PATHS = frozenset({"v1/chat/completions", "v1/completions", "v1/embeddings"})
BODY_BYTES_MOST = 32 << 20
CONNECT_SECONDS = 5.0
IDLE_SECONDS = 900.0
log = structlog.get_logger("stockade.node")


class Served(Protocol):
    """What is there to be reached."""

    def endpoint(self, replica: str, /) -> tuple[str, int] | None:
        """Where a model server answers on this machine; None while it is not to be asked."""


@dataclass(kw_only=True)
class Standing:
    """What the last registration said: who this node is, and the key that its tokens are signed with.

    ``ahead_seconds`` is how much the control plane's clock is ahead of this one's: expiry is by its clock.
    """

    node: str = ""
    tenant: str = ""
    key: str = ""
    ahead_seconds: float = 0.0

    def heard(self, answer: Registered) -> None:
        """The node has registered."""
        self.node, self.tenant, self.key = answer.node, answer.tenant, answer.stream_key
        self.ahead_seconds = answer.now - time.time()

    def now(self) -> float:
        """The control plane's time."""
        return time.time() + self.ahead_seconds


class NodeApp:
    """Make one for a node; ``web_app`` is the application, ``close`` ends its connections to model servers."""

    def __init__(self, standing: Standing, served: Served, now: Callable[[], float] | None = None) -> None:
        self._standing = standing
        self._served = served
        self._now = now or standing.now
        self._session: aiohttp.ClientSession | None = None
        self.web_app = web.Application(client_max_size=BODY_BYTES_MOST, middlewares=[self._only_with_a_token])
        self.web_app.router.add_post("/models/{name}/{rest:.+}", self._model)

    async def close(self) -> None:
        """End what it has open."""
        if self._session is not None:
            await self._session.close()

    @web.middleware
    async def _only_with_a_token(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        kind, name = request.path.split("/")[1], request.match_info.get("name", "")
        target = Target(tenant=self._standing.tenant, kind=kind, name=name)
        try:
            tokens.check(
                request.headers.get(AUTHORIZATION, ""), self._standing.key, self._standing.node, target, self._now()
            )
        except TokenRefused as refused:
            log.warning("a stream was refused", kind=kind, why=str(refused))
            return web.json_response({"error": {"message": f"{refused}"}}, status=403)
        return await handler(request)

    async def _model(self, request: web.Request) -> web.StreamResponse:
        rest = request.match_info["rest"]
        where = self._served.endpoint(request.match_info["name"])
        if rest not in MODEL_PATHS:
            return web.json_response({"error": {"message": "model servers are not asked this"}}, status=404)
        if where is None:
            return web.json_response({"error": {"message": "the model server is not ready"}}, status=503)
        body = await request.read()
        url = f"http://{where[0]}:{where[1]}/{rest}"
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        passed: web.StreamResponse | None = None
        try:
            async with self._client().post(url, data=body, headers=headers, allow_redirects=False) as answer:
                passed = _begun(answer)
                await passed.prepare(request)
                while chunk := await answer.content.readany():
                    await passed.write(chunk)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if passed is None:
                said = f"the model server cannot be reached ({type(error).__name__})"
                return web.json_response({"error": {"message": said}}, status=502)
            if request.transport is not None:
                request.transport.abort()  # a broken answer must not look like a whole one
            return passed
        await passed.write_eof()
        return passed

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=1024, keepalive_timeout=15),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=IDLE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def _begun(answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """The head that goes on: status, type, length and when to come again; no other header of a server's."""
    passed = web.StreamResponse(status=answer.status)
    passed.content_type = answer.content_type
    if answer.content_length is not None:
        passed.content_length = answer.content_length
    if (retry := answer.headers.get("Retry-After", "")).isdecimal() and len(retry) < 6:
        passed.headers["Retry-After"] = retry
    return passed
