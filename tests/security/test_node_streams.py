"""Who reaches a node's application, and for what: stream tokens at the node, and tunnels at the relay."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from joserfc import jwt
from joserfc.jwk import OctKey

from controlplane.nodes.dialing import NodeUnreachable, TunnelDialer, Tunnels
from dataplane.protocol import Registered
from dataplane.serving import tokens
from dataplane.serving.app import NodeApp, Standing
from dataplane.serving.tokens import AUTHORIZATION, LIFE_SECONDS, Signer, Target, TokenRefused, check, sign
from dataplane.tunnel.frames import WINDOW_BYTES
from dataplane.tunnel.mux import Mux

pytestmark = pytest.mark.anyio
KEY = "5a" * 32
NOW = 1_800_000_000.0
TARGET = Target(tenant="default", kind="models", name="rep_1", fence=3)


class TestTokens:
    def test_one_opens_its_target(self) -> None:
        check(sign(KEY, "node_1", TARGET, NOW), KEY, "node_1", TARGET, NOW + 1)

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"tenant": "other"}, "another tenant"),
            ({"name": "rep_2"}, "another target"),
            ({"kind": "sandboxes"}, "another target"),
            ({"fence": 4}, "fence"),
            ({"fence": 2}, "fence"),
        ],
    )
    def test_it_opens_nothing_else(self, changes: dict[str, Any], why: str) -> None:
        other = Target(**{"tenant": "default", "kind": "models", "name": "rep_1", "fence": 3, **changes})
        with pytest.raises(TokenRefused, match=why):
            check(sign(KEY, "node_1", TARGET, NOW), KEY, "node_1", other, NOW)

    def test_it_opens_nothing_on_another_node(self) -> None:
        with pytest.raises(TokenRefused, match="another node"):
            check(sign(KEY, "node_1", TARGET, NOW), KEY, "node_2", TARGET, NOW)

    def test_it_expires_and_is_not_valid_long_before_its_time(self) -> None:
        token = sign(KEY, "node_1", TARGET, NOW)
        for when in (NOW + LIFE_SECONDS, NOW - LIFE_SECONDS * 3):
            with pytest.raises(TokenRefused, match="expired"):
                check(token, KEY, "node_1", TARGET, when)

    @pytest.mark.parametrize("life", [1e12, float("inf")])
    def test_a_life_without_end_is_refused(self, life: float) -> None:
        with pytest.raises(TokenRefused):
            check(sign(KEY, "node_1", TARGET, NOW, life), KEY, "node_1", TARGET, NOW)

    def test_an_earlier_registrations_key_opens_nothing(self) -> None:
        with pytest.raises(TokenRefused, match="not signed"):
            check(sign("a5" * 32, "node_1", TARGET, NOW), KEY, "node_1", TARGET, NOW)

    def test_no_key_no_entry(self) -> None:
        with pytest.raises(TokenRefused):
            check(sign(KEY, "node_1", TARGET, NOW), "", "node_1", TARGET, NOW)

    @pytest.mark.parametrize("missing", ["aud", "ten", "tgt", "fen", "exp"])
    def test_every_claim_is_needed(self, missing: str) -> None:
        claims = {"aud": "node_1", "ten": "default", "tgt": TARGET.path, "fen": 3, "exp": NOW + 5}
        del claims[missing]
        token = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(bytes.fromhex(KEY)))
        with pytest.raises(TokenRefused):
            check(token, KEY, "node_1", TARGET, NOW)

    def test_no_other_algorithm(self) -> None:
        claims = {"aud": "node_1", "ten": "default", "tgt": TARGET.path, "fen": 3, "exp": NOW + 5}
        stronger = jwt.encode({"alg": "HS512"}, claims, OctKey.import_key(bytes.fromhex(KEY)), algorithms=["HS512"])
        unsigned = "eyJhbGciOiJub25lIn0." + stronger.split(".")[1] + "."
        for token in (stronger, unsigned, "", "x", "a.b.c", "é" * 100, "x" * 100_000):
            with pytest.raises(TokenRefused):
                check(token, KEY, "node_1", TARGET, NOW)

    def test_a_signers_tokens_always_have_half_of_their_life_left(self) -> None:
        now = NOW
        signer = Signer(lambda: now)
        first = signer.token(KEY, "node_1", TARGET)
        now = NOW + LIFE_SECONDS / 2 - 1
        assert signer.token(KEY, "node_1", TARGET) == first
        now = NOW + LIFE_SECONDS / 2
        later = signer.token(KEY, "node_1", TARGET)
        assert later != first
        check(later, KEY, "node_1", TARGET, now + LIFE_SECONDS / 2)


class ModelServer:
    """Serves ``/v1/chat/completions`` as a test tells it, on a loopback port."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.arrived = asyncio.Event()
        self.abandoned = asyncio.Event()
        self.release = asyncio.Event()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        self.http = TestServer(app, handler_cancellation=True)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.requests.append((asked, dict(request.headers)))
        self.arrived.set()
        if asked.get("big"):
            answer = web.StreamResponse()
            await answer.prepare(request)
            for _ in range(asked["big"]):
                await answer.write(b"x" * 65536)
            await answer.write_eof()
            return answer
        if asked.get("hang"):
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.abandoned.set()
                raise
        if asked.get("break"):
            answer = web.StreamResponse()
            answer.content_length = 100
            await answer.prepare(request)
            await answer.write(b"half")
            assert request.transport is not None
            request.transport.abort()
            return answer
        return web.json_response({"ok": True}, headers={"Set-Cookie": "a=b", "X-Secret": "1", "Retry-After": "3"})


class Endpoints:
    """What the node serves: one replica."""

    def __init__(self, port: int) -> None:
        self.known = {"rep_1": ("127.0.0.1", port)}

    def endpoint(self, replica: str, /) -> tuple[str, int] | None:
        return self.known.get(replica)


class Place:
    """A node's application behind a tunnel whose two ends are joined here, and a dialer that uses it."""

    def __init__(self, server: ModelServer, app: NodeApp, tunnels: Tunnels) -> None:
        self.server = server
        self.app = app
        self.signer = Signer(time.time)
        self.key = KEY
        self.dialer = TunnelDialer(tunnels, lambda node, target: self.signer.token(self.key, node, target))
        self.relay: Mux
        self.node: Mux

    async def chat(self, *, tenant: str = "default", name: str = "rep_1", path: str = "/v1/chat/completions",
                   node: str = "node_1", **body: Any) -> aiohttp.ClientResponse:  # fmt: skip
        target = Target(tenant=tenant, kind="models", name=name)
        return await self.dialer.post(node, target, path, json.dumps(body).encode(), idle_seconds=20)


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    server = ModelServer()
    await server.http.start_server()
    standing = Standing()
    standing.heard(
        Registered(
            node="node_1", token="t", heartbeat_seconds=1, lease_seconds=1, hold_seconds=1,
            tenant="default", stream_key=KEY, now=time.time(),
        )
    )  # fmt: skip
    app = NodeApp(standing, Endpoints(server.http.port or 0))
    runner = web.AppRunner(app.web_app, handler_cancellation=True, access_log=None)
    await runner.setup()
    tunnels = Tunnels()
    there = Place(server, app, tunnels)

    async def to_node(frame: bytes) -> None:
        there.node.received(frame)
        await asyncio.sleep(0)

    async def to_relay(frame: bytes) -> None:
        there.relay.received(frame)
        await asyncio.sleep(0)

    assert runner.server is not None
    there.relay, there.node = Mux(to_node), Mux(to_relay, runner.server)
    session = tunnels.add("node_1", there.relay)
    try:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(mux.serve()) for mux in (there.relay, there.node)]
            yield there
            for task in tasks:
                task.cancel()
    finally:
        server.release.set()
        await session.close()
        there.relay.end()
        there.node.end()
        await runner.cleanup()
        await app.close()
        await server.http.close()


async def test_an_answer_comes_through_without_the_servers_headers() -> None:
    async with place() as at:
        async with await at.chat(hello=1) as answer:
            assert (answer.status, await answer.json()) == (200, {"ok": True})
            assert answer.headers["Retry-After"] == "3"
            assert not {"Set-Cookie", "X-Secret"} & set(answer.headers)
        ((asked, headers),) = at.server.requests
        assert asked == {"hello": 1}
        assert AUTHORIZATION not in headers


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"tenant": "other"}, 403),
        ({"path": "/v1/models"}, 404),
        ({"path": "/metrics"}, 404),
        ({"path": "/v1/../metrics"}, 404),
        ({"path": "/v1/chat/completions/../../../slots"}, 404),
        ({"name": "rep_2"}, 503),
    ],
)
async def test_nothing_else_is_reached(wrong: dict[str, str], status: int) -> None:
    async with place() as at:
        async with await at.chat(**wrong) as answer:
            assert answer.status in (status, 403)
        assert at.server.requests == []


async def test_a_token_is_not_taken_for_another_target_on_the_same_connection() -> None:
    async with place() as at:
        (await at.chat()).close()
        stolen = at.signer.token(KEY, "node_1", Target(tenant="default", kind="models", name="rep_1"))
        at.signer.token = lambda *_: stolen  # type: ignore[method-assign]
        async with await at.chat(name="rep_2") as answer:
            assert answer.status == 403
        at.server.requests.clear()
        at.signer.token = lambda *_: tokens.sign(  # type: ignore[method-assign]
            KEY, "node_1", Target(tenant="default", kind="models", name="rep_1"), time.time() - 60
        )
        async with await at.chat() as answer:
            assert answer.status == 403
        assert at.server.requests == []


async def test_a_key_of_an_earlier_registration_is_refused() -> None:
    async with place() as at:
        at.key = "a5" * 32
        async with await at.chat() as answer:
            assert answer.status == 403


async def test_a_node_without_a_tunnel_is_said_to_have_none() -> None:
    async with place() as at:
        with pytest.raises(NodeUnreachable, match="no tunnel"):
            await at.chat(node="node_2")


async def test_a_reader_that_stops_stops_the_server_and_nobody_else() -> None:
    async with place() as at:
        slow = await at.chat(big=400)  # 25 MiB
        async with await at.chat(hello=1) as quick:
            assert quick.status == 200
        held = sum(
            len(stream._in) + len(stream._out) for mux in (at.relay, at.node) for stream in mux._streams.values()
        )
        assert held <= WINDOW_BYTES * 4
        total = 0
        while chunk := await slow.content.readany():
            total += len(chunk)
        assert total == 400 * 65536


async def test_a_caller_that_goes_away_ends_the_call_at_the_server() -> None:
    async with place() as at:
        asking = asyncio.ensure_future(at.chat(hang=1))
        await at.server.arrived.wait()
        asking.cancel()
        await at.server.abandoned.wait()


async def test_a_node_that_goes_away_fails_what_was_under_way_and_what_comes() -> None:
    async with place() as at:
        asking = asyncio.ensure_future(at.chat(hang=1))
        await at.server.arrived.wait()
        at.relay.end()
        with pytest.raises(NodeUnreachable):
            await asking
        with pytest.raises(NodeUnreachable):
            await at.chat()


async def test_half_an_answer_is_not_a_whole_one() -> None:
    async with place() as at:
        answer = await at.chat(**{"break": 1})
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


async def test_many_calls_share_the_tunnel() -> None:
    async with place() as at:

        async def one(number: int) -> int:
            async with await at.chat(number=number) as answer:
                return answer.status

        assert await asyncio.gather(*(one(number) for number in range(100))) == [200] * 100
        assert len(at.relay) <= 100
