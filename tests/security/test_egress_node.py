"""Where a node's own requests may not go, and what may not come back to a guest."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from dataplane.egress import CheckedResolver, EgressRefused, check_literal, refusal
from dataplane.http_calls import HttpCalls, Outcome
from dataplane.protocol import HttpCall, SecretLease
from dataplane.scrubbing import Scrubber

pytestmark = pytest.mark.anyio

REFUSED_ALWAYS = [
    "169.254.169.254",
    "169.254.1.1",
    "100.100.100.200",
    "fd00:ec2::254",
    "168.63.129.16",
    "0.0.0.0",  # noqa: S104
    "0.1.2.3",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "::",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "192.0.2.1",
]
PRIVATE = ["127.0.0.1", "127.9.9.9", "::1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd12:3456::1"]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "93.184.216.34"]


@pytest.mark.parametrize("text", REFUSED_ALWAYS + PRIVATE)
def test_not_allowed_without_the_platforms_word(text: str) -> None:
    assert refusal(ipaddress.ip_address(text), private_allowed=False)
    with pytest.raises(EgressRefused, match=r"is|hides"):
        check_literal(text, private_allowed=False)


@pytest.mark.parametrize("text", REFUSED_ALWAYS)
def test_never_allowed(text: str) -> None:
    assert refusal(ipaddress.ip_address(text), private_allowed=True)


@pytest.mark.parametrize("text", PRIVATE)
def test_private_needs_the_platforms_word(text: str) -> None:
    assert refusal(ipaddress.ip_address(text), private_allowed=True) is None


@pytest.mark.parametrize("text", PUBLIC)
def test_public_is_allowed(text: str) -> None:
    assert refusal(ipaddress.ip_address(text), private_allowed=False) is None
    check_literal(text, private_allowed=False)


async def test_one_bad_address_among_good_ones_refuses_the_name() -> None:
    async def lookup(host: str) -> list[str]:
        return ["8.8.8.8", "127.0.0.1"]

    with pytest.raises(EgressRefused, match=r"mixed\.example resolves to 127\.0\.0\.1, which is loopback"):
        await CheckedResolver(private_allowed=False, lookup=lookup).resolve("mixed.example", 80)


@asynccontextmanager
async def service(handler: Callable[[web.Request], Any]) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def perform(port: int, *, path: str = "/", lookup: Any = None, **more: Any) -> Outcome:
    calls = HttpCalls(lookup or local)
    try:
        host = more.pop("host", "tool.example")
        return await calls.perform(
            HttpCall(
                method="GET", url=f"http://{host}:{port}{path}", private_allowed=more.pop("private", True), **more
            ),
            "key",
        )
    finally:
        await calls.close()


async def local(host: str) -> list[str]:
    return ["127.0.0.1"]


def message(outcome: Outcome) -> str:
    assert outcome.error is not None
    return str(outcome.error["message"])


async def test_a_name_that_rebinds_to_loopback_is_judged_again() -> None:
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])
    hits: list[str] = []

    async def lookup(host: str) -> list[str]:
        return next(answers)

    async def hit(request: web.Request) -> web.Response:
        hits.append(request.path)
        return web.Response(text="inside")

    resolver = CheckedResolver(private_allowed=False, lookup=lookup)
    assert (await resolver.resolve("rebind.example"))[0]["host"] == "8.8.8.8"
    async with service(hit) as port:
        outcome = await perform(port, lookup=lookup, private=False, host="rebind.example")
    assert outcome.error is not None
    assert outcome.error["type"] == "policy_denied"
    assert "127.0.0.1, which is loopback" in message(outcome)
    assert not hits


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "127.1"])
async def test_no_spelling_of_loopback_gets_through(host: str) -> None:
    hits: list[str] = []

    async def hit(request: web.Request) -> web.Response:
        hits.append(request.path)
        return web.Response(text="inside")

    from dataplane.egress import system_lookup

    async with service(hit) as port:
        outcome = await perform(port, private=False, host=host, lookup=system_lookup)
    assert outcome.error is not None
    assert not hits


async def test_a_pooled_private_connection_is_not_reused_for_a_public_call() -> None:
    async def hit(request: web.Request) -> web.Response:
        return web.Response(text="inside")

    calls = HttpCalls(local)
    try:
        async with service(hit) as port:
            url = f"http://tool.example:{port}/"
            allowed = await calls.perform(HttpCall(method="GET", url=url, private_allowed=True), "k")
            refused = await calls.perform(HttpCall(method="GET", url=url), "k")
    finally:
        await calls.close()
    assert allowed.value == "inside"
    assert "loopback" in message(refused)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_refused(status: int) -> None:
    hits: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        hits.append(request.path)
        return web.Response(status=status, headers={"Location": "http://169.254.169.254/latest"})

    async with service(handler) as port:
        outcome = await perform(port)
    assert "redirects are not followed" in message(outcome)
    assert hits == ["/"]


async def test_answers_are_bounded() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 5000)

    async with service(handler) as port:
        assert "above 4096 bytes" in message(await perform(port, response_bytes_max=4096))
        assert (await perform(port, response_bytes_max=5000)).value == "x" * 5000


SECRET = 's3cr"t+/ value&='


def lease(value: str = SECRET) -> SecretLease:
    return SecretLease(name="s", header="X-Key", format="key={}", value=value)


async def test_the_secret_does_not_come_back_in_any_form() -> None:
    seen: list[str] = []

    async def echo(request: web.Request) -> web.Response:
        seen.append(request.headers["X-Key"])
        return web.json_response(
            {
                "plain": SECRET,
                SECRET: [SECRET, {"deep": f"x{SECRET}y"}],
                "url": quote(SECRET, safe=""),
                **{
                    f"b64-{lead}": base64.b64encode(b"u" * lead + SECRET.encode() + b"tail").decode()
                    for lead in range(4)
                },
                "hex": SECRET.encode().hex(),
            }
        )

    async with service(echo) as port:
        outcome = await perform(port, secrets=[lease()])
    assert seen == [f"key={SECRET}"]
    text = repr(outcome.value)
    assert "s3cr" not in text
    assert SECRET.encode().hex() not in text
    for lead in range(4):
        answer = outcome.value[f"b64-{lead}"]
        assert "***" in answer
        assert base64.b64encode(SECRET.encode()).decode()[:12] not in answer


async def test_errors_are_scrubbed_too() -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(status=500, text=f"bad key {SECRET}", reason=f"no {SECRET}")

    async with service(echo) as port:
        outcome = await perform(port, secrets=[lease()])
    assert outcome.error is not None
    assert outcome.error["retryable"] is True
    assert outcome.error["status"] == 500
    assert "s3cr" not in repr(outcome.error)


async def test_a_secret_that_would_split_headers_is_an_error_without_the_secret() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="reached")

    async with service(handler) as port:
        outcome = await perform(port, secrets=[lease("abcdef\r\nX-Evil: 1")])
    assert outcome.error is not None
    assert "abcdef" not in repr(outcome.error)


async def test_a_secret_does_not_travel_in_clear_text_to_the_internet() -> None:
    outcome = await perform(80, private=False, secrets=[lease()])
    assert "clear text" in message(outcome)


async def test_the_caller_cannot_set_the_secret_or_host_header() -> None:
    seen: dict[str, str] = {}

    async def echo(request: web.Request) -> web.Response:
        seen.update(request.headers)
        return web.Response(text="ok")

    async with service(echo) as port:
        await perform(port, secrets=[lease("abcdef")], headers={"x-key": "mine", "Host": "evil.example", "A": "b"})
    assert (seen["X-Key"], seen["A"]) == ("key=abcdef", "b")
    assert seen["Host"].startswith("tool.example")


def test_numbers_that_are_the_secret_are_masked() -> None:
    assert Scrubber(["12345678"]).json({"pin": 12345678, "other": 7, "flag": True}) == {
        "pin": "***",
        "other": 7,
        "flag": True,
    }
