"""``Authority`` and ``NodeDialer`` of a gateway process: the control plane over HTTP (``wire.py``)."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Awaitable
from typing import Any, TypeVar

import aiohttp
import anyio
import msgspec
import structlog

from controlplane.inference.gateway import wire
from controlplane.inference.gateway.authority import Admission, Listed
from controlplane.inference.gateway.metering import Usage
from controlplane.inference.gateway.refusals import GatewayRefused
from controlplane.inference.gateway.requests import ModelRequest
from controlplane.inference.gateway.upstream import Unreachable
from controlplane.inference.values import Replica
from controlplane.nodes.dialing import NodeUnreachable, post_again
from dataplane.serving.tokens import Target

T = TypeVar("T")
ANSWER_SECONDS = 10.0
USAGE_SECONDS = 1.0
USAGE_MOST = 100_000
log = structlog.get_logger(__name__)


class ControlPlaneLink:
    """One session to the control plane. ``token`` is the gateway's."""

    def __init__(self, url: str, token: str) -> None:
        self._base = url.rstrip("/") + wire.PREFIX
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1024, keepalive_timeout=15),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def close(self) -> None:
        """End its connections."""
        await self._session.close()

    async def ask(self, path: str, message: Any, kind: type[T], *, again: bool = True) -> T:
        """Send, and read the answer. ``again``: see ``post``. Raises: GatewayRefused, also when the control plane does
        not answer."""
        try:
            async with await self.post(path, wire.encoded(message), {}, ANSWER_SECONDS, again=again) as answer:
                body = await answer.read()
                if answer.status < 300:
                    return msgspec.json.decode(body or b"null", type=kind)
                if "problem" not in answer.content_type:
                    raise msgspec.json.decode(body, type=wire.Refusal).error()
                log.error("the control plane refused this gateway", status=answer.status, path=path)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            log.warning("the control plane does not answer", path=path, why=f"{type(error).__name__}: {error}"[:300])
        said = "The control plane does not answer this gateway, and without it nothing is done."
        raise GatewayRefused("policy_unavailable", said, fix="Try again.", retry_after=1)

    async def post(
        self, path: str, body: bytes, headers: dict[str, str], seconds: float, *, again: bool = True
    ) -> aiohttp.ClientResponse:
        """Send; ``seconds`` is the longest silence. ``again``: once more if the connection ends without an answer,
        which is for what adds to no sum."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=seconds)
        url = self._base + path

        def send() -> Awaitable[aiohttp.ClientResponse]:
            return self._session.post(
                url, data=body, headers=self._headers | headers, timeout=timeout, allow_redirects=False
            )

        return await (post_again(send) if again else send())


class RemoteAuthority:
    """``Authority``. What was used is kept until the control plane has taken it, up to a bound; ``serve`` sends it."""

    def __init__(self, link: ControlPlaneLink) -> None:
        self._link = link
        self._used: deque[Usage] = deque()
        self._dropped = 0
        self._batch: wire.UsageBatch | None = None
        self._sending = asyncio.Lock()

    async def admit(self, key: str | None, request: ModelRequest) -> Admission:
        return (await self._link.ask("/admit", wire.AdmitRequest.of(key, request), wire.Admitted)).admission()

    async def models(self, key: str | None) -> list[Listed]:
        return await self._link.ask("/models", wire.ModelsRequest(key=key), list[Listed])

    async def model(self, key: str | None, name: str) -> Listed:
        (found,) = await self._link.ask("/models", wire.ModelsRequest(key=key, name=name), list[Listed])
        return found

    async def key(self, replica: Replica) -> str | None:
        if replica.secret is None:
            return None
        asked = wire.KeyRequest(tenant=replica.tenant, deployment=replica.deployment, replica=replica.id)
        try:
            answer = await self._link.ask("/key", asked, wire.KeyAnswer)
        except GatewayRefused as no:
            raise Unreachable(no.message) from None
        if answer.why:
            raise Unreachable(answer.why)
        return answer.key

    def meter(self, usage: Usage) -> None:
        if len(self._used) >= USAGE_MOST:
            self._used.popleft()
            self._dropped += 1
        self._used.append(usage)

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(USAGE_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Send what was used; what the control plane does not take stays, also when this is cancelled.

        Whether a batch without an answer was taken is not known: it goes again as it was, under its id."""
        async with self._sending:
            if self._dropped:
                log.warning("usage not counted: the control plane has not taken it for too long", calls=self._dropped)
                self._dropped = 0
            while self._batch is not None or self._used:
                if self._batch is None:
                    used = [self._used.popleft() for _ in range(min(len(self._used), wire.BATCH_MOST))]
                    self._batch = wire.UsageBatch(id=uuid.uuid4().hex, used=used)
                try:
                    await self._link.ask("/usage", self._batch, type(None), again=False)
                except GatewayRefused:
                    return
                self._batch = None

    async def finish(self, seconds: float) -> None:
        """The last flush; what is not taken within ``seconds`` is lost, and the log says how much."""
        with anyio.move_on_after(seconds):
            await self.flush()
        if lost := len(self._used) + (0 if self._batch is None else len(self._batch.used)):
            log.warning("usage not counted: the gateway ends, and the control plane does not take it", calls=lost)


class RelayDialer:
    """``NodeDialer``: by way of the control plane, where the nodes' tunnels end."""

    def __init__(self, link: ControlPlaneLink) -> None:
        self._link = link

    async def post(
        self, node: str, target: Target, path: str, body: bytes, *, idle_seconds: float
    ) -> aiohttp.ClientResponse:
        headers = {wire.TENANT: target.tenant, wire.IDLE: f"{idle_seconds:g}", "Accept-Encoding": "identity"}
        try:
            answer = await self._link.post(f"/nodes/{node}{target.path}{path}", body, headers, idle_seconds)
            if wire.NOT_RELAYED not in answer.headers:
                return answer
            async with answer:
                why = msgspec.json.decode(await answer.read(), type=wire.NoRelay).why
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, msgspec.DecodeError) as error:
            raise NodeUnreachable(f"its node cannot be reached ({type(error).__name__})") from None
        raise NodeUnreachable(why)
