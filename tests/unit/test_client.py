"""The client against a server that answers badly: lost streams, refusals, absence."""

from __future__ import annotations

import json

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from stockade.client import AsyncClient, Client, ServerUnreachable, StockadeError
from stockade.client.sse import EventLines
from tests.acceptance.cluster import free_port


def frame(seq: int, kind: str) -> str:
    data = json.dumps({"seq": seq, "type": kind, "run": "run_1", "path": "", "at": "2026-01-01T00:00:00Z", "data": {}})
    return f": heartbeat\n\nid: {seq}\nevent: {kind}\ndata: {data}\n\n"


def test_a_lost_event_stream_is_resumed_after_the_last_event(httpserver: HTTPServer) -> None:
    asked: list[str | None] = []

    def answer(request: Request) -> Response:
        asked.append(request.headers.get("Last-Event-ID"))
        body = frame(1, "run.created") + frame(2, "step.ready") if len(asked) == 1 else frame(3, "run.completed")
        return Response(body, content_type="text/event-stream")

    httpserver.expect_request("/v1/runs/run_1/events").respond_with_handler(answer)
    with Client(httpserver.url_for("/")) as client:
        assert [event.seq for event in client.events("run_1")] == [1, 2, 3]
    assert asked == [None, "2"]


@pytest.mark.anyio
async def test_the_async_client_resumes_too(httpserver: HTTPServer) -> None:
    asked: list[str | None] = []

    def answer(request: Request) -> Response:
        asked.append(request.headers.get("Last-Event-ID"))
        body = frame(7, "run.created") if len(asked) == 1 else frame(8, "run.failed")
        return Response(body, content_type="text/event-stream")

    httpserver.expect_request("/v1/runs/run_1/events").respond_with_handler(answer)
    async with AsyncClient(httpserver.url_for("/")) as client:
        assert [event.seq async for event in client.events("run_1")] == [7, 8]
    assert asked == [None, "7"]


def test_a_problem_becomes_an_error_with_its_members(httpserver: HTTPServer) -> None:
    problem = {
        "type": "/problems/policy-denied", "title": "Policy denied this", "status": 403, "detail": "no",
        "decision_id": "dec_1", "errors": [{"pointer": "/steps/0", "message": "m", "hint": "h"}],
    }  # fmt: skip
    httpserver.expect_request("/v1/runs").respond_with_json(problem, status=403)
    with Client(httpserver.url_for("/")) as client, pytest.raises(StockadeError) as caught:
        client.submit({})
    error = caught.value
    assert (error.status, error.slug, error.decision_id, error.errors[0].pointer) == (
        403, "policy-denied", "dec_1", "/steps/0",
    )  # fmt: skip


def test_a_submit_is_repeated_under_one_key_while_the_server_is_away(httpserver: HTTPServer) -> None:
    keys: list[str | None] = []

    def answer(request: Request) -> Response:
        keys.append(request.headers.get("Idempotency-Key"))
        if len(keys) < 3:
            return Response("{}", status=503, content_type="application/problem+json")
        body = {"id": "run_1", "status": "pending", "workflow": {"name": "a", "version": "1"}}
        return Response(json.dumps(body), status=201, content_type="application/json")

    httpserver.expect_request("/v1/runs", method="POST").respond_with_handler(answer)
    with Client(httpserver.url_for("/")) as client:
        assert client.submit({}).id == "run_1"
    assert len(keys) == 3 and len(set(keys)) == 1 and keys[0]


def test_nobody_there_is_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockade.client.transport.FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("stockade.client.transport.LONGEST_PAUSE_SECONDS", 0.001)
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(ServerUnreachable):
        client.status()


def test_event_lines_join_data_and_skip_comments() -> None:
    lines = EventLines()
    fed = [lines.feed(line) for line in (": hi", "", 'data: {"seq": 4,', 'data: "type": "x"}', "")]
    assert [event.seq for event in fed if event] == [4]
