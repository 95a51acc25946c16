"""An OPA server broken in every way we know: nothing is allowed, soon, with a distinct reason, and it recovers.

First one that answers whatever a test wants, then a real one that is killed, stopped and given another policy.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from controlplane.authorization.bundle import bundle_of
from controlplane.authorization.enforcement import Enforcer
from controlplane.authorization.opa.address import OpaAddress, read_token
from controlplane.authorization.opa.engine import OpaEngine
from controlplane.authorization.opa.transport import LONGEST_ANSWER_BYTES
from controlplane.authorization.testing import question
from controlplane.authorization.values import Decision, PolicyUnavailable
from tests.opa_server import TOKEN, OpaServer, opa_server, ready

pytestmark = pytest.mark.anyio

RULES = """package runtime.tool
import rego.v1
default decision := {"allow": false}
decision := {"allow": true} if input.step == "allow"
decision := {"allow": true} if {
	input.step == "runaway"
	some a in numbers.range(1, 900)
	some b in numbers.range(1, 900)
	some c in numbers.range(1, 900)
	a + b + c < 0
}
"""
BUNDLE = bundle_of({"runtime/tool.rego": RULES}, {})
OTHER = bundle_of({"runtime/tool.rego": RULES + '\ndecision := {"allow": true} if input.step == "new"\n'}, {})
ALLOW = question(step="allow")
PROVENANCE = {"provenance": {"bundles": {"stockade": {"revision": BUNDLE.revision}}}}
ALLOWED = {**PROVENANCE, "result": {"allow": True}}


async def unavailable_soon(enforcer: Enforcer) -> Decision:
    begun = time.perf_counter()
    with pytest.raises(PolicyUnavailable) as caught:
        await enforcer.ask(ALLOW)
    assert time.perf_counter() - begun < 0.25
    assert caught.value.decision is not None
    assert (caught.value.decision.allow, caught.value.decision.failure) == (False, "policy_unavailable")
    return caught.value.decision


async def allows(enforcer: Enforcer) -> None:
    with anyio.fail_after(30):
        while not any(isinstance(one, Decision) and one.allow for one in await enforcer.ask_many([ALLOW])):
            continue


class Impostor:
    """Speaks HTTP on a socket and answers with ``status`` and ``body``; None is silence."""

    def __init__(self) -> None:
        self.status = 200
        self.body: bytes | None = json.dumps(ALLOWED).encode()
        self.headers = ""
        self.requests: list[bytes] = []
        self.engine: OpaEngine | None = None

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                while True:
                    received = await stream.receive()
                    while b"\r\n\r\n" not in received:
                        received += await stream.receive()
                    head, _, rest = received.partition(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                    while len(rest) < length:
                        rest += await stream.receive()
                    self.requests.append(head)
                    if self.body is None:
                        await anyio.sleep_forever()
                    body = self.body or b""
                    lines = f"HTTP/1.1 {self.status} X\r\ncontent-length: {len(body)}\r\n{self.headers}"
                    await stream.send(f"{lines}content-type: application/json\r\n\r\n".encode() + body)


@pytest.fixture
async def impostor(tmp_path: Path) -> AsyncIterator[Impostor]:
    """One that answers well until told otherwise, and the engine that asks it."""
    made = Impostor()
    path = tmp_path / "impostor.sock"
    listener = await anyio.create_unix_listener(path)
    made.engine = OpaEngine(BUNDLE, OpaAddress.parse(f"unix://{path}"), TOKEN)
    async with anyio.create_task_group() as group:
        group.start_soon(listener.serve, made.serve)
        await made.engine.start()
        yield made
        await made.engine.close()
        group.cancel_scope.cancel()
        await listener.aclose()


@pytest.fixture
def asks(impostor: Impostor) -> Enforcer:
    assert impostor.engine is not None
    return Enforcer(impostor.engine, {})


def tell(result: Any, **more: Any) -> bytes:
    return json.dumps({**PROVENANCE, "result": result, **more}).encode()


WRONG: dict[str, tuple[int, bytes, str]] = {
    "nothing": (200, b"{}", "no_policy"),
    "undefined": (200, json.dumps(PROVENANCE).encode(), "malformed_answer"),
    "no revision": (200, b'{"result": {"allow": true}}', "no_policy"),
    "another revision": (
        200, tell({"allow": True}, provenance={"bundles": {"stockade": {"revision": "sha256:0"}}}), "wrong_revision",
    ),
    "another bundle": (
        200, tell({"allow": True}, provenance={"bundles": {"x": {"revision": BUNDLE.revision}}}), "no_policy",
    ),
    "provenance of text": (200, tell({"allow": True}, provenance="fine"), "no_policy"),
    "a bare true": (200, tell(True), "malformed_answer"),
    "text for true": (200, tell({"allow": "true"}), "malformed_answer"),
    "one for true": (200, tell({"allow": 1}), "malformed_answer"),
    "an unknown field": (200, tell({"allow": True, "alow": False}), "malformed_answer"),
    "a list": (200, b"[]", "malformed_answer"),
    "no JSON": (200, b"<html>yes</html>", "malformed_answer"),
    "half of JSON": (200, json.dumps(ALLOWED).encode()[:-2], "malformed_answer"),
    "not a number": (200, tell({"allow": True, "obligations": [{"kind": "x", "n": float("nan")}]}), "malformed_answer"),
    "deep": (200, b'{"result": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "malformed_answer"),
    "empty": (200, b"", "malformed_answer"),
    "too long": (200, b" " * (LONGEST_ANSWER_BYTES + 1), "malformed_answer"),
    "accepted": (202, json.dumps(ALLOWED).encode(), "malformed_answer"),
    "elsewhere": (302, json.dumps(ALLOWED).encode(), "malformed_answer"),
    "bad request": (400, json.dumps(ALLOWED).encode(), "malformed_answer"),
    "not found": (404, json.dumps(ALLOWED).encode(), "malformed_answer"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_answer_denies_with_its_reason(impostor: Impostor, asks: Enforcer, case: str) -> None:
    await allows(asks)
    impostor.status, impostor.body, code = WRONG[case]
    decision = await asks.ask(ALLOW)
    assert (decision.allow, decision.failure, decision.obligations) == (False, "malformed_answer", ())
    assert decision.reasons[0].code == code
    assert decision.reasons[0].remedy
    many = await asks.ask_many([ALLOW] * 40)
    assert [isinstance(one, Decision) and one.allow for one in many] == [False] * 40


@pytest.mark.parametrize("status", [401, 403, 429, 500, 502, 503, 504])
async def test_a_server_that_fails_is_unavailable(impostor: Impostor, asks: Enforcer, status: int) -> None:
    """Also where the body of the failure is an allow."""
    await allows(asks)
    impostor.status = status
    decision = await unavailable_soon(asks)
    assert str(status) in decision.reasons[0].message
    impostor.status = 200
    await allows(asks)


async def test_silence_is_unavailable_within_250_ms(impostor: Impostor, asks: Enforcer) -> None:
    await allows(asks)
    body, impostor.body = impostor.body, None
    assert "deadline" in (await unavailable_soon(asks)).reasons[0].message
    many = await asks.ask_many([ALLOW] * 300)
    assert all(isinstance(one, PolicyUnavailable) for one in many)
    impostor.body = body
    await allows(asks)


async def test_before_it_was_right_once_a_wrong_policy_is_unavailable(impostor: Impostor, asks: Enforcer) -> None:
    """It may not have fetched the bundle yet, and a step must not fail for that."""
    impostor.status = 503
    await unavailable_soon(asks)
    impostor.status, body, impostor.body = 200, impostor.body, b"{}"
    await unavailable_soon(asks)
    impostor.body = body
    await allows(asks)


async def test_the_token_is_sent_to_nobody_else(impostor: Impostor, asks: Enforcer) -> None:
    impostor.status, impostor.headers = 307, "location: /elsewhere\r\n"
    await asks.ask(ALLOW)
    assert impostor.requests
    assert all(f"authorization: bearer {TOKEN}".encode() in head.lower() for head in impostor.requests)
    assert not any(b"/elsewhere" in head for head in impostor.requests)


async def test_no_answer_repeats_the_token(impostor: Impostor, asks: Enforcer) -> None:
    impostor.status = 401
    assert TOKEN not in repr((await unavailable_soon(asks)).to_json())


async def test_nobody_listening_is_unavailable(tmp_path: Path) -> None:
    engine = OpaEngine(BUNDLE, OpaAddress.parse(f"unix://{tmp_path}/none.sock"), TOKEN)
    with pytest.raises(PolicyUnavailable, match="cannot be reached"):
        await engine.start()
    assert "cannot be reached" in (await unavailable_soon(Enforcer(engine, {}))).reasons[0].message
    await engine.close()


@pytest.mark.parametrize(
    "url",
    ["", "opa", "http://opa:8181", "http://10.0.0.1:8181", "ftp://127.0.0.1", "unix://opa.sock", "https://h/path",
     "http://127.evil.example:8181"],
)  # fmt: skip
def test_an_address_that_would_leak_the_token_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"is no address|in the clear"):
        OpaAddress.parse(url)


@pytest.mark.parametrize("token", ["", "short", "a" * 31, "é" * 40, "a" * 20 + " " + "b" * 20])
def test_a_token_that_is_none_is_refused(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(ValueError, match="openssl rand"):
        read_token(tmp_path / "token")


# A real server.


@pytest.fixture
def server() -> Iterator[OpaServer]:
    with opa_server(BUNDLE) as one:
        yield one


@pytest.fixture
async def engine(server: OpaServer) -> AsyncIterator[OpaEngine]:
    one = server.engine()
    await ready(one)
    yield one
    await one.close()


@pytest.fixture
def enforcer(engine: OpaEngine) -> Enforcer:
    return Enforcer(engine, {})


async def test_killed_and_started_again_it_never_denies(server: OpaServer, enforcer: Enforcer) -> None:
    """Without its bundle a new server knows nothing, and that is no denial."""
    for _ in range(3):
        server.send(signal.SIGKILL)
        await unavailable_soon(enforcer)
        server.start()
        with anyio.fail_after(30):
            while not isinstance(answer := (await enforcer.ask_many([ALLOW]))[0], Decision):
                continue
        assert answer.allow


async def test_stopped_it_is_unavailable_within_250_ms_and_goes_on(server: OpaServer, enforcer: Enforcer) -> None:
    server.send(signal.SIGSTOP)
    try:
        for _ in range(3):
            await unavailable_soon(enforcer)
    finally:
        server.send(signal.SIGCONT)
    await allows(enforcer)


async def test_a_server_that_moved_on_denies_until_we_follow(server: OpaServer, engine: OpaEngine) -> None:
    asking = Enforcer(engine, {})
    server.served = OTHER
    with anyio.fail_after(30):
        while (decision := await asking.ask(ALLOW)).allow:
            continue
    assert decision.reasons[0].code == "wrong_revision"
    follower = server.engine(OTHER)
    await ready(follower)
    assert (await Enforcer(follower, {}).ask(question(step="new"))).allow
    await follower.close()


async def test_a_rule_that_ran_away_keeps_nobody_the_second_time(enforcer: Enforcer) -> None:
    batch = [question(step="runaway", run="other"), *[ALLOW] * 40]
    for _ in range(3):
        answers = await enforcer.ask_many(batch)
        assert isinstance(answers[0], PolicyUnavailable)
        assert all(isinstance(one, Decision) and one.allow for one in answers[1:])


async def test_without_the_token_it_answers_nothing(server: OpaServer, engine: OpaEngine) -> None:
    stranger = OpaEngine(BUNDLE, OpaAddress.parse(f"unix://{server.socket}"), "not" + TOKEN)
    with pytest.raises(PolicyUnavailable, match="401"):
        await stranger.start()
    await stranger.close()
