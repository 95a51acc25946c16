"""A model server that lies, floods or hangs costs its own replica only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from dataplane.models.asking import ANSWER_MOST_BYTES, Asking
from dataplane.models.llamacpp import LlamaCpp
from dataplane.models.server import Load, ServerSilent
from dataplane.models.sglang import SgLang

pytestmark = pytest.mark.anyio


def rank(**changed: object) -> bytes:
    return json.dumps({"loads": [{"num_running_reqs": 1, "num_waiting_reqs": 0, **changed}]}).encode()


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'{"loads": 7}', b'{"loads": [7]}', b'{"loads": null}', b"[" * 100_000, b"\xff\xfe"],
)
async def test_nonsense_of_sglang_counts_as_silence(tmp_path: Path, body: bytes) -> None:
    async def ask(_path: str, _seconds: float) -> bytes:
        return body

    with pytest.raises(ServerSilent):
        await SgLang(None, tmp_path).load(ask)


@pytest.mark.parametrize(
    "value", [-1, 1e308, float("nan"), float("inf"), "many", None, True, [1], {"a": 1}, 10**400],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
async def test_numbers_of_sglang_are_bounded(tmp_path: Path, value: object) -> None:
    async def ask(_path: str, _seconds: float) -> bytes:
        return rank(num_running_reqs=value, max_running_requests=value, token_usage=value)

    try:
        load = await SgLang(None, tmp_path).load(ask)
    except ServerSilent:
        return
    assert 0 <= load.running <= 2**31 and 0 <= load.slots <= 2**31
    assert load.token_usage is None or 0 <= load.token_usage <= 1


@pytest.mark.parametrize(
    ("metrics", "props"),
    [
        (b"", b"{}"),
        (b"llamacpp:requests_processing 1\n", b"{}"),
        (b"llamacpp:requests_processing eee\nllamacpp:requests_deferred 1\n", b"{}"),
        (b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 1\n", b"[" * 100_000),
        (b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 1\n", b"7"),
    ],
)
async def test_nonsense_of_llama_cpp_counts_as_silence(tmp_path: Path, metrics: bytes, props: bytes) -> None:
    async def ask(path: str, _seconds: float) -> bytes:
        return metrics if path == "/metrics" else props

    with pytest.raises(ServerSilent):
        await LlamaCpp(None, tmp_path).load(ask)


async def test_llama_cpp_s_load_is_read(tmp_path: Path) -> None:
    said = {
        "/metrics": b"llamacpp:requests_processing 2\nllamacpp:requests_deferred 1e300\n",
        "/props": b'{"total_slots": 4}',
    }

    async def ask(path: str, _seconds: float) -> bytes:
        return said[path]

    assert await LlamaCpp(None, tmp_path).load(ask) == Load(slots=4, running=2, waiting=2**31)


@pytest.mark.parametrize(
    ("status", "headers", "body", "said"),
    [
        (503, {}, b"", "answers 503"),
        (302, {"Location": "http://10.0.0.1/"}, b"", "answers 302"),
        (200, {}, b"x" * (ANSWER_MOST_BYTES + 1), "more than"),
    ],
)
async def test_answers_are_bounded_and_lead_nowhere(
    httpserver: HTTPServer, status: int, headers: dict[str, str], body: bytes, said: str
) -> None:
    httpserver.expect_request("/health").respond_with_handler(lambda _: Response(body, status, headers))
    asking = Asking()
    try:
        with pytest.raises(ServerSilent, match=said):
            await asking.ask(httpserver.port, "/health", 10.0)
    finally:
        await asking.close()


async def test_nobody_there_and_no_answer_are_silence(httpserver: HTTPServer) -> None:
    asking = Asking()
    try:
        with pytest.raises(ServerSilent):
            await asking.ask(1, "/health", 5.0)
    finally:
        await asking.close()
