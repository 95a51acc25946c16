"""What a person sees of runs: what waits for them, what failed where, what a step wrote, why it is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from rich.console import Console
from werkzeug import Request, Response

from stockade.cli import explaining, logs, runs, validating
from stockade.cli.exits import Exit
from stockade.cli.output import Format
from stockade.cli.tree import Words, run_tree
from stockade.cli.watching import follow, summary, window
from stockade.client import Client, Run, Step

RUN = "run_" + "1" * 26
AT = "2026-01-01T00:00:00Z"
ASKING: dict[str, Any] = {
    "path": "consent", "verb": "approve", "status": "waiting", "started_at": AT, "detail": {"ask": "May I?"},
}  # fmt: skip
CODE: dict[str, Any] = {
    "path": "scan", "verb": "code", "status": "failed", "number": 2, "failures": 2, "attempt": "att_1",
    "node": "node_1", "tier": "wasm", "started_at": AT, "finished_at": AT,
    "error": {"type": "sandbox_exit", "message": "exited with code 1"},
    "waiting": [{"code": "node_lost", "message": "1 node lost"}],
    "placement": {
        "candidates": 3, "filtered": {"cpu": 2},
        "top": [{"node": "node_1", "cost_seconds": 0.5, "terms": {"packing": 0.5}}],
    },
    "report": {"stdout_bytes": 0, "stderr_bytes": 9},
}  # fmt: skip


def the_run(status: str, steps: list[dict[str, Any]], **members: Any) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for step in steps:
        counts[step["status"]] = counts.get(step["status"], 0) + 1
    return {
        "id": RUN, "status": status, "workflow": {"name": "w", "version": "1"},
        "steps": {"total": len(steps), "by_status": counts}, **members,
    }  # fmt: skip


def serve(server: HTTPServer, status: str, steps: list[dict[str, Any]], **members: Any) -> Client:
    """A client of a server that has one run, and little else to say about it."""
    run = the_run(status, steps, **members)
    server.expect_request("/v1/runs", method="GET").respond_with_json({"data": [run]})
    server.expect_request(f"/v1/runs/{RUN}").respond_with_json(run)
    server.expect_request(f"/v1/runs/{RUN}/steps").respond_with_json({"data": steps})
    for step in steps:
        server.expect_request(f"/v1/runs/{RUN}/steps/{step['path']}").respond_with_json(step)
    server.expect_request("/v1/nodes").respond_with_json({"data": [{"id": "node_1", "name": "mill"}]})
    server.expect_request("/v1/decisions").respond_with_json(
        {"data": [{"id": "dec_1", "allow": True, "entry": "runtime.workflow"}]}
    )
    return Client(server.url_for("/"))


def events(*items: tuple[str, str, dict[str, Any]]) -> str:
    lines = [
        json.dumps({"seq": number, "type": kind, "path": path, "at": AT, "run": RUN, "data": data})
        for number, (kind, path, data) in enumerate(items, 1)
    ]
    return "".join(f"data: {line}\n\n" for line in lines)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda: capsys.readouterr()


def test_ps_says_what_a_person_is_asked_and_finds_it_as_waiting(httpserver: HTTPServer, printed: Any) -> None:
    with serve(httpserver, "running", [ASKING]) as client:
        runs.ps(client, "waiting", 20, Format.TABLE)
    assert "asks: May I?" in printed().out


def test_ps_says_how_many_failures_were_tolerated(httpserver: HTTPServer, printed: Any) -> None:
    with serve(httpserver, "completed", [{**CODE}, {"path": "b", "status": "completed"}]) as client:
        runs.ps(client, None, 20, Format.TABLE)
        assert "1 failed, tolerated" in printed().out
        assert "1 failed and tolerated" in summary(client.run(RUN))


def test_the_tree_shows_a_question_only_while_it_is_open() -> None:
    run = Run.model_validate(the_run("running", [ASKING]))
    open_, over = Step.model_validate(ASKING), Step.model_validate({**ASKING, "status": "cancelled"})
    assert "asks: May I?" in drawn(run, [open_]) and "asks" not in drawn(run, [over])


def test_the_tree_orders_what_began_in_one_moment_by_its_first_event() -> None:
    run = Run.model_validate(the_run("running", [ASKING]))
    steps = [Step.model_validate(ASKING), Step.model_validate({**ASKING, "path": "zeta", "verb": "if"})]
    lines = drawn(run, steps, Words(seen={"zeta": 3, "consent": 5})).splitlines()
    assert "zeta" in lines[1] and "consent" in lines[2]


def test_a_map_that_stopped_early_says_of_how_many() -> None:
    run = Run.model_validate(the_run("failed", []))
    steps = [Step(path="each", verb="map", status="failed", detail={"items": 50})]
    steps += [Step(path=f"each[{number}]/one", verb="code", status="completed") for number in range(37)]
    assert "37 of 50 items begun: 37 completed" in drawn(run, steps)


def test_an_agent_shows_its_turns_in_order_its_model_and_its_tokens() -> None:
    run = Run.model_validate(the_run("running", []))
    usage = {"model": "small", "usage": {"prompt_tokens": 120, "completion_tokens": 8}}
    steps = [Step(path="fix", verb="agent", status="running", detail={**usage, "turn": 11})]
    for turn in range(1, 12):
        steps += [Step(path=f"fix#{turn}/{name}", verb="code", status="completed") for name in ("model", "code0")]
    lines = drawn(run, steps).splitlines()
    assert "agent small 120 + 8 tokens, 11 turns" in lines[1]
    assert [line.split("#")[1] for line in lines if "#" in line] == [str(turn) for turn in range(1, 12)]
    steps += [Step(path=f"fix#{turn}/model", verb="llm", status="completed", detail=usage) for turn in range(12, 41)]
    text = drawn(run, steps)
    assert "35 earlier turns" in text and "#36 model" in text and "#35" not in text


def drawn(run: Run, steps: list[Step], words: Words | None = None) -> str:
    screen = Console(width=200)
    with screen.capture() as captured:
        screen.print(run_tree(run, steps, words or Words()))
    return captured.get()


@pytest.mark.parametrize(
    ("active", "expected"), [(3, (1, 8)), (15, (10, 17)), (29, (23, 30))]
)  # fmt: skip
def test_a_small_screen_shows_the_active_step(active: int, expected: tuple[int, int]) -> None:
    lines = [f"{'●' if number == active else '✓'} {number}" for number in range(30)]
    assert window(lines, 10) == expected and expected[0] <= active < expected[1]
    assert window(lines, 30) == (0, 30)


def test_the_live_screen_shows_the_question_and_the_command_that_answers_it(httpserver: HTTPServer) -> None:
    body = events(("approval.requested", "consent", {"ask": "May I?"}), ("run.completed", "", {}))
    httpserver.expect_request(f"/v1/runs/{RUN}/events").respond_with_data(body, content_type="text/event-stream")
    screen = Console(width=100, height=14, force_terminal=True, record=True)
    with serve(httpserver, "running", [ASKING]) as client, screen.capture() as captured:
        follow(client, RUN, screen, live=True)
    shown = captured.get()
    assert "consent asks: May I?" in shown and f"stockade approve {RUN} consent" in shown


def test_waiting_for_a_run_says_what_it_asks_unless_quiet(httpserver: HTTPServer, printed: Any) -> None:
    body = events(("approval.requested", "consent", {"ask": "May I?"}), ("run.completed", "", {}))
    httpserver.expect_request(f"/v1/runs/{RUN}/events").respond_with_data(body, content_type="text/event-stream")
    with serve(httpserver, "completed", [ASKING]) as client:
        follow(client, RUN, Console(), live=False)
        assert f"stockade approve {RUN} consent" in printed().err
        follow(client, RUN, Console(), live=False, silent=True)
        assert printed().err == ""


def test_a_failed_step_of_code_is_explained_by_its_logs(httpserver: HTTPServer, printed: Any) -> None:
    error = {"type": "sandbox_exit", "message": "exited with code 1", "path": "scan"}
    httpserver.expect_request(f"/v1/runs/{RUN}/events").respond_with_data(
        events(("run.failed", "", {})), content_type="text/event-stream"
    )
    with serve(httpserver, "failed", [CODE], error=error) as client:
        assert runs.watch(client, RUN, Format.TABLE) == Exit.FAILED
    assert printed().err.splitlines()[-1] == f"fix:   stockade logs {RUN} scan"


def test_a_cancelled_run_is_said_to_be_one(httpserver: HTTPServer, printed: Any) -> None:
    error = {"type": "cancelled", "message": "cancelled"}
    httpserver.expect_request(f"/v1/runs/{RUN}/events").respond_with_data(
        events(("run.cancelled", "", {})), content_type="text/event-stream"
    )
    with serve(httpserver, "cancelled", [], error=error) as client:
        runs.watch(client, RUN, Format.TABLE)
    assert printed().err.splitlines() == ["error: the run was cancelled", f"where: {RUN}"]


def test_cancelling_what_has_failed_says_so(httpserver: HTTPServer, printed: Any) -> None:
    with serve(httpserver, "failed", []) as client:
        assert runs.cancel(client, RUN, None) == Exit.FAILED
    assert "was failed already" in printed().err


def test_explain_is_for_people(httpserver: HTTPServer, printed: Any) -> None:
    decided = {"ask": "May I?", "decided": {"approved": True, "by": "ada", "comment": "fine"}}
    fork = {"path": "fork", "verb": "if", "status": "completed", "detail": {"branch": "else"}}
    steps = [CODE, {**ASKING, "status": "completed", "detail": decided}, fork]
    with serve(httpserver, "failed", steps) as client:
        explaining.explain(client, RUN, None, Format.TABLE)
        text = printed().out
    for expected in (
        "on mill in wasm", "of 3 nodes, left out: 2 by cpu", "mill would cost 0.500 s (packing 0.500)",
        "2, of which 2 failed", "approved by ada: fine", "did not hold: else", "allowed runtime.workflow  dec_1",
        f"stockade logs {RUN} scan",
    ):  # fmt: skip
        assert expected in text
    assert "node lost" not in text and "{'" not in text


def test_explain_names_the_approval_that_is_open(httpserver: HTTPServer, printed: Any) -> None:
    with serve(httpserver, "running", [ASKING]) as client:
        explaining.explain(client, RUN, "consent", Format.TABLE)
    text = printed().out
    assert "asks      May I?" in text and f"stockade approve {RUN} consent" in text


def test_explain_prints_what_was_asked(httpserver: HTTPServer, printed: Any) -> None:
    made = {"id": "dec_1", "entry": "runtime.tool", "input": {"args": {"city": {"value": "Bern"}}}}
    httpserver.expect_request("/v1/decisions/dec_1").respond_with_json(made)
    with Client(httpserver.url_for("/")) as client:
        explaining.explain(client, "dec_1", None, Format.TABLE)
    assert "    args:\n      city:\n        value: Bern" in printed().out


def test_logs_have_both_streams_and_those_of_a_step_that_still_runs(httpserver: HTTPServer, printed: Any) -> None:
    written = {"stdout": "one\ntw", "stderr": "bad\n"}
    httpserver.expect_request(f"/v1/runs/{RUN}/logs").respond_with_handler(
        lambda request: Response(written[request.args["stream"]])
    )
    with serve(httpserver, "running", [{**CODE, "status": "running", "report": None}]) as client:
        logs.logs(client, RUN, None, None, False, Format.TABLE)
        assert printed().out == "scan | one\nscan | tw\nscan | ! bad\n"
        logs.logs(client, RUN, "scan", "stdout", False, Format.TABLE)
        assert printed().out == "one\ntw\n"


def test_followed_logs_come_line_by_line_until_the_run_ends(
    httpserver: HTTPServer, printed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FIRST_PAUSE_SECONDS", 0.0)
    texts = ["on", "one\ntw", "one\ntwo", "again\n"]
    asked: list[str] = []

    def text(request: Request) -> Response:
        asked.append(request.args["stream"])
        return Response(texts[len(asked) - 1])

    def run(_: Request) -> Response:
        return Response(json.dumps(the_run("completed" if len(asked) == 3 else "running", [])))

    def step(_: Request) -> Response:
        last = len(asked) == 3
        ended = {"status": "completed", "attempt": "att_2"} if last else {"status": "running"}
        return Response(json.dumps({**CODE, "report": None, **ended}))

    httpserver.expect_request(f"/v1/runs/{RUN}").respond_with_handler(run)
    httpserver.expect_request(f"/v1/runs/{RUN}/steps/scan").respond_with_handler(step)
    httpserver.expect_request(f"/v1/runs/{RUN}/logs").respond_with_handler(text)
    with Client(httpserver.url_for("/")) as client:
        logs.logs(client, RUN, "scan", "stdout", True, Format.TABLE)
    # The second attempt is told from its beginning.
    assert printed().out == "one\nagain\n" and len(asked) == 4


@pytest.mark.parametrize(
    ("answer", "code", "expected"),
    [
        (
            {"valid": False, "decision": {"reasons": [{"code": "over", "message": "m", "remedy": "less"}]}},
            Exit.DENIED, ["policy would deny this: over", "fix:   less"],
        ),
        (
            {"valid": False, "digest": "d", "problems": [{"pointer": "", "message": '"who" is a required property'}]},
            Exit.USAGE, ["the input is not valid", "fix:   --input who=VALUE"],
        ),
        (
            {"valid": False, "digest": "d", "problems": [{"pointer": "/n", "message": '5 is not of type "string"'}]},
            Exit.USAGE, ["where: --input /n", """--input 'n="5"'"""],
        ),
        (
            {"valid": False, "digest": None, "problems": [{"pointer": "/steps/0", "message": "m"}]},
            Exit.USAGE, ["the workflow is not valid", "flow.json /steps/0"],
        ),
        ({"valid": True, "digest": "d"}, Exit.OK, ["valid: it would run now"]),
        (
            {"valid": True, "placements": [{"path": "/steps/0", "id": "scan", "waiting": [{"message": "no GPU"}]}]},
            Exit.NOT_PLACED, ["scan  /steps/0", "no GPU", "valid, but"],
        ),
        (
            {"valid": True, "placements": [{"path": "/steps/0", "id": "scan", "node": "node_1", "explanation": {
                "candidates": 3, "filtered": {"labels": 1},
                "top": [{"node": "node_1", "cost_seconds": 4.01, "terms": {"near": 4.0, "sandbox_start": 0.01}}],
                "busy": [{"node": "node_2", "cost_seconds": 9.0, "terms": {"wait": 9.0}}]}}]},
            Exit.OK, ["alpha", "4.010 s", "of 3 nodes, left out: 1 by labels", "alpha would cost 4.010 s (near 4.000,",
                      "node_2 is full: would cost 9.000 s (wait 9.000)"],
        ),
    ],
)  # fmt: skip
def test_validate_says_what_is_not_right(
    httpserver: HTTPServer, printed: Any, tmp_path: Path, answer: dict[str, Any], code: Exit, expected: list[str]
) -> None:
    httpserver.expect_request("/v1/runs:validate", method="POST").respond_with_json(answer)
    httpserver.expect_request("/v1/nodes").respond_with_json({"data": [{"id": "node_1", "name": "alpha"}]})
    file = tmp_path / "flow.json"
    file.write_text("{}")
    with Client(httpserver.url_for("/")) as client:
        assert validating.validate(client, str(file), ["n=5"], Format.TABLE) == code
    text = "".join(printed())
    for part in expected:
        assert part in text
