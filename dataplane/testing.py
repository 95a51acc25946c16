"""A control plane in memory that speaks the node's wire over HTTP, with failures a test can order.

async with ControlPlaneDouble().serving() as double:
    double.assign(Assignment(...))
    report = await double.report_of("attempt-1")
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from aiohttp import web

from dataplane.flow_wire import FlowRecord
from dataplane.protocol import (
    Ack,
    ArtifactRef,
    Assignment,
    AuthorizeAnswer,
    AuthorizeRequest,
    CallResult,
    Directive,
    Heartbeat,
    OutputChunk,
    PullRequest,
    PullResponse,
    Register,
    Registered,
    Report,
)


def deny(request: AuthorizeRequest) -> AuthorizeAnswer:
    """The answer to every call unless the test gives another: no."""
    return AuthorizeAnswer(call=request.call, error={"type": "policy_denied", "message": "the double allows nothing"})


class ControlPlaneDouble:
    """``cut_after`` names paths whose next request is carried out and then answered by closing the connection;
    ``broken`` refuses everything with 503; ``stale`` attempts are told so."""

    def __init__(
        self, *, heartbeat_seconds: float = 3.0, lease_seconds: float = 15.0, hold_seconds: float = 900.0
    ) -> None:
        self.heartbeat_seconds, self.lease_seconds, self.hold_seconds = heartbeat_seconds, lease_seconds, hold_seconds
        self.url = ""
        self.join_token = "join"  # noqa: S105
        self.token = ""
        self.registered: list[Register] = []
        self.heartbeats: list[Heartbeat] = []
        self.deliveries: list[Report] = []
        self.reports: dict[str, Report] = {}
        self.results: list[CallResult] = []
        self.flows: list[FlowRecord] = []
        self.asked: list[AuthorizeRequest] = []
        self.chunks: dict[tuple[str, str, int], OutputChunk] = {}
        self.artifacts: dict[str, tuple[ArtifactRef, bytes]] = {}
        self.authorize: Callable[[AuthorizeRequest], AuthorizeAnswer] = deny
        self.stale: set[str] = set()
        self.cut_after: list[str] = []
        self.broken = False
        self.upload_refused = 0  # the status that uploads get, if any
        self.on_reports: Callable[[list[Report]], None] | None = None
        self._pending: deque[Assignment] = deque()
        self._directives: deque[Directive] = deque()
        self._wake = anyio.Event()
        self._changed = anyio.Event()
        self._closing = False

    # --- what a test does

    def assign(self, *assignments: Assignment) -> None:
        self._pending.extend(assignments)
        self._wake.set()

    def direct(self, directive: Directive) -> None:
        self._directives.append(directive)
        self._wake.set()

    def add_artifact(self, id: str, data: bytes, name: str = "file", media_type: str = "text/plain") -> ArtifactRef:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        reference = ArtifactRef(id=id, name=name, digest=digest, size_bytes=len(data), media_type=media_type)
        self.artifacts[id] = (reference, data)
        return reference

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait for something that requests bring about. Raises ``TimeoutError``."""
        with anyio.fail_after(seconds):
            while not condition():
                await self._changed.wait()

    async def report_of(self, attempt: str, seconds: float = 10.0) -> Report:
        await self.until(lambda: attempt in self.reports, seconds)
        return self.reports[attempt]

    def output_of(self, attempt: str, stream: str = "stdout") -> bytes:
        found = [
            (at, chunk.data) for (name, kind, at), chunk in self.chunks.items() if (name, kind) == (attempt, stream)
        ]
        return b"".join(data for _, data in sorted(found))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ControlPlaneDouble]:
        app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[self._front])
        app.add_routes(
            [
                web.post("/node/v1/register", self._register),
                web.post("/node/v1/pull", self._pull),
                web.post("/node/v1/authorize", self._authorize),
                web.post("/node/v1/results", self._results),
                web.post("/node/v1/flows", self._flows),
                web.post("/node/v1/output", self._output),
                web.put("/node/v1/artifacts", self._upload),
                web.get("/node/v1/artifacts/{id}", self._download),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self._closing = True
            self._wake.set()
            with anyio.CancelScope(shield=True):
                await runner.cleanup()

    # --- the wire

    @web.middleware
    async def _front(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.broken:
            return web.Response(status=503)
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        expected = self.join_token if request.path.endswith("/register") else self.token
        if not expected or bearer != expected:
            return web.Response(status=401, text="unknown token")
        response: web.StreamResponse = await handler(request)
        self._changed.set()
        self._changed = anyio.Event()
        name = request.path.rsplit("/", 1)[1]
        if name in self.cut_after and request.transport is not None:
            self.cut_after.remove(name)
            request.transport.abort()
        return response

    async def _register(self, request: web.Request) -> web.Response:
        self.registered.append(msgspec.json.decode(await request.read(), type=Register))
        self.token = f"token-{len(self.registered)}"
        return _json(
            Registered(
                node="node-1",
                token=self.token,
                heartbeat_seconds=self.heartbeat_seconds,
                lease_seconds=self.lease_seconds,
                hold_seconds=self.hold_seconds,
            )
        )

    async def _pull(self, request: web.Request) -> web.Response:
        message = msgspec.json.decode(await request.read(), type=PullRequest)
        if message.lane == "report":
            return _json(self._reported(message))
        with anyio.move_on_after(message.wait_seconds):
            while not self._closing and not self._directives and not (self._pending and message.max):
                self._wake = anyio.Event()
                await self._wake.wait()
        taken = [self._pending.popleft() for _ in range(min(message.max, len(self._pending)))]
        directives, self._directives = list(self._directives), deque()
        return _json(PullResponse(assignments=taken, directives=directives))

    def _reported(self, message: PullRequest) -> PullResponse:
        if message.heartbeat is not None:
            self.heartbeats.append(message.heartbeat)
        acks = []
        for report in message.reports:
            self.deliveries.append(report)
            stale = report.attempt in self.stale
            if not stale:
                self.reports[report.attempt] = report
            acks.append(Ack(ok=not stale, stale=stale))
        if self.on_reports is not None and message.reports:
            self.on_reports(message.reports)
        lost = [
            Directive(kind="cancel", attempt=attempt, fence=fence, reason="stale")
            for attempt, fence in (message.heartbeat.attempts if message.heartbeat else [])
            if attempt in self.stale
        ]
        return PullResponse(acks=acks, directives=lost)

    async def _authorize(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=list[AuthorizeRequest])
        self.asked.extend(asked)
        return _json(
            [
                AuthorizeAnswer(call=one.call, stale=True) if one.attempt in self.stale else self.authorize(one)
                for one in asked
            ]
        )

    async def _results(self, request: web.Request) -> web.Response:
        results = msgspec.json.decode(await request.read(), type=list[CallResult])
        self.results.extend(results)
        return _json([Ack(ok=one.attempt not in self.stale, stale=one.attempt in self.stale) for one in results])

    async def _flows(self, request: web.Request) -> web.Response:
        records = msgspec.json.decode(await request.read(), type=list[FlowRecord])
        self.flows.extend(records)
        return _json([Ack(ok=one.attempt not in self.stale, stale=one.attempt in self.stale) for one in records])

    async def _output(self, request: web.Request) -> web.Response:
        chunks = msgspec.json.decode(await request.read(), type=list[OutputChunk])
        for chunk in chunks:
            self.chunks[(chunk.attempt, chunk.stream, chunk.offset)] = chunk
        return _json([Ack(ok=one.attempt not in self.stale, stale=one.attempt in self.stale) for one in chunks])

    async def _upload(self, request: web.Request) -> web.Response:
        if self.upload_refused:
            return web.Response(status=self.upload_refused, text="not stored")
        query = request.query
        id = f"artifact-{len(self.artifacts) + 1}"
        return _json(self.add_artifact(id, await request.read(), query["name"], query["media_type"]))

    async def _download(self, request: web.Request) -> web.Response:
        found = self.artifacts.get(request.match_info["id"])
        if found is None:
            return web.Response(status=404, text="no such artifact")
        return web.Response(body=found[1])


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
