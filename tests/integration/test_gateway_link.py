"""A gateway process's link to its control plane, when answers are lost, calls cancelled and nodes out of reach."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from controlplane.app import create_app
from controlplane.config import Settings
from controlplane.inference.gateway import metering, remote
from controlplane.inference.gateway.metering import Usage
from controlplane.inference.gateway.remote import ControlPlaneLink, RelayDialer, RemoteAuthority
from controlplane.inference.gateway.upstream import NodeServers, Unreachable
from controlplane.inference.values import Replica
from dataplane.serving.tokens import Target

pytestmark = pytest.mark.anyio
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def used(model: str) -> Usage:
    return Usage(
        tenant="default", principal="p", run="", model=model, prompt_tokens=3, completion_tokens=2, seconds=0.5
    )


class LosesAnswers:
    """The control plane's application; the first ``count`` batches of usage are taken, and their answers lost."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def lost(_: Message) -> None:
            """Nobody hears it."""

        if self.count and scope.get("path", "").endswith("/usage") and scope["method"] == "POST":
            self.count -= 1
            await self.app(scope, receive, lost)
            raise ConnectionError("the answer is lost")
        await self.app(scope, receive, send)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state")


@asynccontextmanager
async def control_plane(settings: Settings) -> AsyncIterator[tuple[LosesAnswers, ControlPlaneLink]]:
    app = LosesAnswers(create_app(settings))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on", timeout_graceful_shutdown=1))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.serve, [listener])
            with anyio.fail_after(30):
                while not running.started:  # noqa: ASYNC110 - uvicorn has no event for it
                    await anyio.sleep(0.01)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            link = ControlPlaneLink(url, settings.gateway_token.read_text().strip())
            try:
                yield app, link
            finally:
                await link.close()
                running.should_exit = True


@asynccontextmanager
async def scripted(handler: Handler) -> AsyncIterator[tuple[ControlPlaneLink, str]]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    link = ControlPlaneLink(url, "sg_test")
    try:
        yield link, url
    finally:
        await link.close()
        await runner.cleanup()


async def test_a_batch_that_was_taken_and_not_answered_is_counted_once(settings: Settings) -> None:
    async with control_plane(settings) as (app, link):
        authority = RemoteAuthority(link)
        authority.meter(used("lost"))
        app.count = 2
        for _ in range(3):
            await authority.flush()
        authority.meter(used("after"))
        await authority.flush()
        assert app.count == 0
        counted: dict[str, int] = {}
        with anyio.fail_after(20):
            while "after" not in counted:  # rows are written in order, behind the answers
                rows = await app.app.state.local_gateway.meter.totals("default", days=1, run=None, principal="p")
                counted = {row["model"]: row["calls"] for row in rows}
    assert counted == {"lost": 1, "after": 1}


async def test_the_ids_that_are_remembered_are_bounded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "BATCHES_KNOWN", 2)
    async with control_plane(settings) as (app, _link):
        meter = app.app.state.local_gateway.meter
        added: list[Usage] = []
        monkeypatch.setattr(meter, "add", added.append)
        for batch in ("a", "b", "b", "c", "c", "a"):
            meter.add_batch(batch, [used(batch)])
    assert [one.model for one in added] == ["a", "b", "c", "a"]


async def test_usage_is_not_sent_again_before_the_next_flush_and_then_as_it_was() -> None:
    bodies: list[bytes] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.read())
        if len(bodies) == 1 and request.transport is not None:
            request.transport.abort()
        return web.Response(status=204)

    async with scripted(handler) as (link, _url):
        authority = RemoteAuthority(link)
        authority.meter(used("m"))
        await authority.flush()
        assert len(bodies) == 1
        await authority.flush()
        await authority.flush()
    assert len(bodies) == 2 and bodies[0] == bodies[1]


async def test_a_cancelled_flush_loses_nothing() -> None:
    bodies: list[bytes] = []
    arrived = anyio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.read())
        if len(bodies) == 1:
            arrived.set()
            await anyio.sleep_forever()
        return web.Response(status=204)

    async with scripted(handler) as (link, _url):
        authority = RemoteAuthority(link)
        authority.meter(used("m"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(authority.flush)
            with anyio.fail_after(20):
                await arrived.wait()
            tasks.cancel_scope.cancel()
        authority.meter(used("n"))
        with anyio.fail_after(20):
            await authority.flush()
    assert len(bodies) == 3
    assert bodies[0] == bodies[1]
    assert b'"n"' in bodies[2] and b'"m"' not in bodies[2]


async def test_what_is_not_counted_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "USAGE_MOST", 2)
    bodies: list[bytes] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.read())
        return web.Response(status=503, content_type="application/problem+json", text="{}")

    async with scripted(handler) as (link, _url):
        authority = RemoteAuthority(link)
        for model in ("first", "second", "third"):
            authority.meter(used(model))
        with capture_logs() as logged:
            await authority.flush()
            await authority.finish(20)
    assert b'"first"' not in bodies[0] and b'"second"' in bodies[0] and b'"third"' in bodies[0]
    lost = [line["calls"] for line in logged if line["event"].startswith("usage not counted")]
    assert lost == [1, 2]


async def test_a_node_out_of_reach_is_the_same_to_both_gateways(settings: Settings) -> None:
    replica = Replica(
        id="rep_1", tenant="default", deployment="small", kind="llamacpp", served_name="m", ready=True, node="node_1"
    )
    async with control_plane(settings) as (app, link):
        said = []
        for dialer in (app.app.state.local_gateway.dialer, RelayDialer(link)):
            with pytest.raises(Unreachable) as gone:
                await NodeServers(dialer).post(replica, "/chat/completions", b"{}", idle_seconds=5)
            said.append(str(gone.value))
    assert said == ["its node has no tunnel"] * 2


async def test_a_model_server_cannot_speak_for_the_relay(settings: Settings) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({"why": "as I say"}, status=502, headers={"X-Stockade-Not-Relayed": "1"})

    class Hostile:
        def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
            self.session, self.url = session, url

        async def post(self, *_: Any, **__: Any) -> aiohttp.ClientResponse:
            return await self.session.post(self.url)

    target = Target(tenant="default", kind="models", name="rep_1")
    async with (
        scripted(handler) as (_link, url),
        aiohttp.ClientSession() as session,
        control_plane(settings) as (app, link),
    ):
        state = app.app.state
        state.local_gateway = replace(state.local_gateway, dialer=Hostile(session, url))
        async with await RelayDialer(link).post("node_1", target, "/v1/completions", b"{}", idle_seconds=5) as answer:
            assert (answer.status, await answer.json()) == (502, {"why": "as I say"})
