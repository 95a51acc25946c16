"""The client against a server that answers badly: lost streams, refusals, absence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from stockade import contexts
from stockade.client import AsyncClient, Client, NotStockade, ServerUnreachable, StockadeError
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


def test_the_text_of_an_error_is_enough_to_mend_the_document(httpserver: HTTPServer) -> None:
    faults = [{"pointer": f"/steps/{number}", "message": "m", "hint": "h", "line": 2} for number in range(5)]
    problem = {"type": "/problems/invalid-workflow", "title": "No", "detail": "5 problems", "errors": faults}
    httpserver.expect_request("/v1/runs").respond_with_json(problem, status=422)
    with Client(httpserver.url_for("/")) as client, pytest.raises(StockadeError) as caught:
        client.submit({})
    assert str(caught.value).splitlines() == [
        "No: 5 problems",
        *(f"- /steps/{number} (line 2, column 1): m — h" for number in range(3)),
        "- and 2 more in .errors",
    ]


def test_server_and_key_are_found_as_the_command_line_finds_them(
    httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys: list[str | None] = []

    def answer(request: Request) -> Response:
        keys.append(request.headers.get("Authorization"))
        return Response("{}", content_type="application/json")

    httpserver.expect_request("/v1/status").respond_with_handler(answer)
    url = httpserver.url_for("/").rstrip("/")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("STOCKADE_URL", raising=False)
    monkeypatch.delenv("STOCKADE_API_KEY", raising=False)
    contexts.write(contexts.context_file(), url, "sk_kept")
    with Client() as client:
        client.status()
    monkeypatch.setenv("STOCKADE_API_KEY", "sk_environment")
    with Client() as client:
        client.status()
    with Client(url, api_key="sk_given") as client:
        client.status()
    assert keys == ["Bearer sk_kept", "Bearer sk_environment", "Bearer sk_given"]


@pytest.mark.parametrize(("url", "key"), [("localhost:7373", "sk"), ("http://", "sk"), ("http://a", "sk_…")])
def test_what_cannot_be_an_address_or_a_key_is_refused_with_a_remedy(url: str, key: str) -> None:
    with pytest.raises(ValueError, match=r"write it as|copy the key"):
        Client(url, api_key=key)


def test_another_servers_answer_is_not_taken_for_stockades(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/v1/runs").respond_with_json({"hello": 1})
    with Client(httpserver.url_for("/")) as client, pytest.raises(NotStockade, match="not a Stockade"):
        client.runs()


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
