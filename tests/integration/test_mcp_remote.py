"""Streamable HTTP servers: real ones on loopback, written with the official package, and hostile ones."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest
import uvicorn
from aiohttp import web
from mcp.server.mcpserver import Context, MCPServer
from starlette.types import ASGIApp, Receive, Scope, Send

from dataplane.client import ControlPlane
from dataplane.data_roots import DataRoots
from dataplane.egress import system_lookup
from dataplane.mcp import remote
from dataplane.mcp.calls import McpCalls
from dataplane.mcp.conversation import Conversation
from dataplane.mcp.failures import McpFailed
from dataplane.protocol import McpCall, McpEndpoint, SecretLease

pytestmark = pytest.mark.anyio
SECRET = SecretLease(name="k", header="Authorization", format="Bearer {}", value="canary-0f3a9b77")


class Seen:
    """Headers of what came in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.headers = app, list[dict[str, str]]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await self.app(scope, receive, send)


def server(seen: list[str]) -> MCPServer:
    made = MCPServer("remote")

    @made.tool(description="Adds.")
    def add(a: int, b: int) -> int:
        return a + b

    @made.tool(description="Says what it was sent.", structured_output=False)
    def leak(context: Context) -> str:
        return f"I was told {SECRET.value}"

    @made.tool(description="Never answers.")
    async def hang() -> str:
        await anyio.sleep_forever()
        return ""

    return made


@asynccontextmanager
async def serving(stateless: bool = False, json_response: bool = False) -> AsyncIterator[tuple[str, Seen]]:
    app = Seen(server([]).streamable_http_app(stateless_http=stateless, json_response=json_response))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.serve, [listener])
            with anyio.fail_after(20):
                while not running.started:  # noqa: ASYNC110 - uvicorn has no event for it
                    await anyio.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", app
            running.should_exit = True


@asynccontextmanager
async def hostile(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/mcp", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
    finally:
        await runner.cleanup()


def endpoint(url: str, **more: Any) -> McpEndpoint:
    return McpEndpoint(url=url, private_allowed=True, **more)


async def perform(at: McpEndpoint, act: Callable[[Conversation], Awaitable[Any]], seconds: float = 20) -> Any:
    return await remote.perform(at, act, seconds, system_lookup)


async def definitions(conversation: Conversation) -> list[dict[str, Any]]:
    return (await conversation.definitions())[0]


async def reviewed(at: McpEndpoint, tool: str, **args: Any) -> McpCall:
    definition = next(one for one in await perform(at, definitions) if one["name"] == tool)
    return McpCall(server="r", server_id="r", endpoint=at, tool=tool, args=args, reviewed=definition)


@pytest.mark.parametrize(("stateless", "json_response"), [(False, False), (True, False), (True, True)])
async def test_a_real_server_is_listed_and_called_with_the_secret_in_a_header(
    stateless: bool, json_response: bool
) -> None:
    async with serving(stateless, json_response) as (url, seen):
        at = endpoint(url, secrets=[SECRET], headers={"X-Team": "sre", "Host": "elsewhere.example"})
        call = await reviewed(at, "add", a=2, b=3)
        result = await perform(at, lambda conversation: conversation.call(call, "key"))
        assert result.structured_content == {"result": 5}
        assert all(one["authorization"] == f"Bearer {SECRET.value}" for one in seen.headers)
        assert all(one["x-team"] == "sre" and "elsewhere" not in one["host"] for one in seen.headers)


async def test_a_secret_in_an_answer_is_scrubbed() -> None:
    async with serving() as (url, _seen), anyio.create_task_group() as tasks:
        call = await reviewed(endpoint(url, secrets=[SECRET]), "leak")
        calls = McpCalls(cast(ControlPlane, None), {}, DataRoots({}))  # no file, no process: neither is asked
        tasks.start_soon(calls.serve)
        outcome = await calls.perform(call, "key", "att", 1)
        tasks.cancel_scope.cancel()
    assert outcome.error is None and outcome.value == "I was told ***"


async def test_a_call_that_hangs_ends_in_time() -> None:
    async with serving() as (url, _seen):
        at = endpoint(url)
        call = await reviewed(at, "hang")
        with anyio.fail_after(10), pytest.raises(McpFailed, match=r"within 1\.5 s") as failed:
            await perform(at, lambda conversation: conversation.call(call, "key"), 1.5)
        assert failed.value.reason == "mcp_timeout"


async def test_a_cancelled_call_is_cancelled_whatever_its_server_did_before() -> None:
    async with serving() as (url, _seen):
        port = url.rpartition(":")[2].partition("/")[0]
        address = ["127.0.0.1"]
        refused = anyio.Event()

        async def lookup(host: str) -> list[str]:
            if address[0] != "127.0.0.1":
                refused.set()  # by the time anybody hears it: what follows in the transport does not wait
            return address

        async def act(conversation: Conversation) -> None:
            address[0] = "169.254.169.254"
            with contextlib.suppress(McpFailed):
                await definitions(conversation)
            await anyio.sleep_forever()

        ended: list[str] = []

        async def call() -> None:
            try:
                await remote.perform(endpoint(f"http://localhost:{port}/mcp"), act, 60, lookup)
            except BaseException as error:
                ended.append(type(error).__name__)
                raise

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await refused.wait()
                tasks.cancel_scope.cancel()
        assert ended == ["CancelledError"]


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("127.0.0.1", "is loopback"),
        ("localhost", "is loopback"),
        ("169.254.169.254", "metadata"),
        ("[::ffff:127.0.0.1]", "hides an IPv4 address"),
        ("10.1.2.3", "is private"),
    ],
)
async def test_internal_addresses_are_refused_unless_listed(host: str, says: str) -> None:
    with pytest.raises(McpFailed, match=says) as failed:
        await perform(McpEndpoint(url=f"http://{host}:9/mcp"), definitions)
    assert failed.value.reason == "egress_refused"


async def test_a_name_is_judged_at_each_connection() -> None:
    async with serving() as (url, seen):
        port = url.rpartition(":")[2].partition("/")[0]
        asked: list[str] = []

        async def rebinding(host: str) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"]

        at = McpEndpoint(url=f"http://innocent.example:{port}/mcp")
        with pytest.raises(McpFailed, match=r"innocent\.example resolves to 127\.0\.0\.1, which is loopback"):
            await remote.perform(at, definitions, 10, rebinding)
        assert asked and not seen.headers
        with pytest.raises(McpFailed) as answered:  # the server itself takes no other Host than its own
            await remote.perform(McpEndpoint(url=at.url, private_allowed=True), definitions, 10, rebinding)
        assert answered.value.reason == "mcp_error"
        assert seen.headers[0]["host"] == f"innocent.example:{port}"


async def test_a_secret_does_not_travel_in_clear_text_off_this_machine() -> None:
    async def lookup(host: str) -> list[str]:
        return ["10.0.0.9"]

    at = McpEndpoint(url="http://db.example:1/mcp", private_allowed=True, secrets=[SECRET])
    with pytest.raises(McpFailed, match="clear text"):
        await remote.perform(at, definitions, 10, lookup)


async def flood(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"event: message\ndata: " + b"x" * 65536)
    return response


async def storm(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(
                b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/message",'
                b'"params":{"level":"info","data":"x"}}\n\n'
            )
    return response


async def large(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * 65536)
    return response


def _many(asked: Any) -> bytes:
    return b'{"jsonrpc":"2.0","id":%d,"result":{"tools":[' % asked.get("id", 0) + b"[]," * 300_000 + b"[]]}}"


async def many(request: web.Request) -> web.StreamResponse:
    return web.Response(body=_many(await request.json()), content_type="application/json")


async def many_in_an_event(request: web.Request) -> web.StreamResponse:
    body = b"event: message\ndata: " + _many(await request.json()) + b"\n\n"
    return web.Response(body=body, content_type="text/event-stream")


async def many_in_another_encoding(request: web.Request) -> web.StreamResponse:
    hidden = _many(await request.json()).replace(b"[", b"+AFs-").replace(b",", b"+ACw-")
    return web.Response(
        body=b"event: message\ndata: " + hidden + b"\n\n", headers={"Content-Type": "text/event-stream; charset=utf-7"}
    )


async def garbage(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>", content_type="text/html")


async def nonsense(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    return web.json_response({"jsonrpc": "2.0", "id": asked.get("id"), "result": {"well": 1}})


async def redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("http://169.254.169.254/latest")


async def echo_secret(request: web.Request) -> web.StreamResponse:
    body = {"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": f"no: {request.headers['Authorization']}"}}
    return web.json_response(body)


@pytest.mark.parametrize(
    ("handler", "reasons"),
    [
        (flood, {"mcp_flood", "mcp_exited"}),
        (storm, {"mcp_flood"}),
        (large, {"mcp_flood"}),
        (many, {"mcp_flood"}),
        (many_in_an_event, {"mcp_flood"}),
        (many_in_another_encoding, {"mcp_garbage"}),
        (garbage, {"mcp_error", "mcp_garbage", "mcp_exited"}),
        (nonsense, {"mcp_garbage"}),
        (redirect, {"mcp_error"}),
    ],
)
async def test_hostile_servers_end_with_a_reason_in_bounded_time(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], reasons: set[str]
) -> None:
    async with hostile(handler) as url:
        with anyio.fail_after(30), pytest.raises(McpFailed) as failed:
            await perform(endpoint(url), definitions, 15)
        assert failed.value.reason in reasons, (failed.value.reason, str(failed.value))


async def test_a_secret_that_comes_back_in_an_error_is_scrubbed() -> None:
    async with hostile(echo_secret) as url:
        with pytest.raises(McpFailed) as failed:
            await perform(endpoint(url, secrets=[SECRET]), definitions, 10)
        assert SECRET.value not in str(failed.value)
