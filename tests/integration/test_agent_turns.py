"""``agent`` steps against a scripted server and a scripted node: turns, tools, budgets, repair, crashes, labels."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.authorization.values import PolicyUnavailable
from dataplane.protocol import Assignment, Report
from tests.integration.model_bench import bench, done, echo
from tests.model_http import HttpModels
from tests.scripted_model import Say, ScriptedModel

pytestmark = pytest.mark.anyio
SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    with ScriptedModel(lambda _asked: Say(text="done")) as one:
        yield one


@pytest.fixture
def models(server: ScriptedModel) -> HttpModels:
    return HttpModels(server.url)


def agent(**more: Any) -> dict[str, Any]:
    modifiers = {name: more.pop(name) for name in ("retry", "timeout", "on_error", "sandbox") if name in more}
    return {"id": "fix", "agent": {"prompt": "do ${input}", "tools": ["builtin.noop"], **more}, **modifiers}


def noop(**args: Any) -> tuple[str, Any]:
    return "builtin__noop", args


def counting(turns: int) -> Any:
    """A call in each of so many turns, then the answer."""
    return lambda asked: Say(calls=(noop(turn=asked.turn),)) if asked.turn < turns else Say(text="done")


async def test_turns_are_steps_of_the_run_and_results_go_back(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    server.script = lambda asked: Say(calls=(noop(a=1), noop(b=[2]))) if asked.turn == 0 else Say(text="three")
    async with bench(tmp_path, models) as one:
        run = await one.run([agent(instructions="be good")], "this")
        steps = await one.steps(run["id"])
        decisions = run["decisions"]
    assert (run["status"], run["output"]) == ("completed", {"fix": "three"})
    assert [step["path"] for step in steps] == ["fix", "fix#1/call0", "fix#1/call1", "fix#1/model", "fix#2/model"]
    assert steps[0]["detail"]["usage"] == {"prompt_tokens": 20, "completion_tokens": 10}
    assert (steps[0]["detail"]["turn"], steps[0]["detail"]["steps"], steps[0]["detail"]["model"]) == (2, 4, "scripted")
    assert steps[1]["output"] == {"a": 1}
    # The workflow, two answers, two tool calls.
    assert decisions == {"total": 5, "denied": 0}
    first, second = server.asked()
    assert [tool["function"]["name"] for tool in first.body["tools"]] == ["builtin__noop"]
    assert first.messages == [{"role": "system", "content": "be good"}, {"role": "user", "content": "do this"}]
    ids = [call["id"] for call in second.messages[2]["tool_calls"]]
    assert ids == ["call_1_0", "call_1_1"]
    assert second.messages[3:] == [
        {"role": "tool", "tool_call_id": "call_1_0", "content": '{"a":1}'},
        {"role": "tool", "tool_call_id": "call_1_1", "content": '{"b":[2]}'},
    ]


async def test_what_cannot_be_done_is_told_to_the_model(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    wanted = (("rm_rf", {}), ("builtin__noop", "{nonsense"), ("builtin__artifact__write", {}), ("builtin__noop", "[1]"))
    server.script = lambda asked: Say(calls=wanted) if asked.turn == 0 else Say(text="done")
    async with bench(tmp_path, models) as one:
        run = await one.run([agent()], "x")
        steps = await one.steps(run["id"])
    assert run["status"] == "completed"
    assert len(steps) == 3, "nothing was performed"
    results = [message["content"] for message in server.asked()[1].messages if message["role"] == "tool"]
    assert "no function 'rm_rf'; there is builtin__noop" in results[0]
    assert "not a JSON object" in results[1]
    assert "no function" in results[2]
    assert "they are list" in results[3]


async def test_refusals_errors_and_wrong_arguments_are_told_to_the_model(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    wanted = (("builtin__artifact__read", {"artifact": 1}), noop(n=1))
    server.script = lambda asked: Say(calls=wanted) if asked.turn == 0 else Say(text="done")

    def perform(assignment: Assignment) -> Report:
        return done(assignment, reason="tool", error={"type": "tool", "message": "the disk is full"})

    async with bench(tmp_path, models, perform) as one:
        run = await one.run([agent(tools=["builtin.*"])], "x")
    assert run["output"] == {"fix": "done"}
    results = [message["content"] for message in server.asked()[1].messages if message["role"] == "tool"]
    assert results[0].startswith("Error (schema): arguments of builtin.artifact.read")
    assert results[1] == "Error (tool): the disk is full"


async def test_code_mode_offers_one_function_and_runs_programs(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    ran: list[Assignment] = []

    def perform(assignment: Assignment) -> Report:
        ran.append(assignment)
        return echo(assignment)

    server.script = lambda asked: (
        Say(calls=(("run_python", {"code": "print('${input}')"}),)) if asked.turn == 0 else Say(text="done")
    )
    async with bench(tmp_path, models, perform) as one:
        run = await one.run([agent(code=True, tools=["builtin.*"], sandbox={"memory": "64Mi"})], "x")
        steps = await one.steps(run["id"])
    assert run["status"] == "completed"
    assert [step["path"] for step in steps] == ["fix", "fix#1/code0", "fix#1/model", "fix#2/model"]
    (function,) = server.asked()[0].body["tools"]
    assert function["function"]["name"] == "run_python"
    described = function["function"]["description"]
    assert "tools.call('builtin.artifact.read', artifact: string, max_bytes: integer = …)" in described
    assert "tools.builtin.noop()" in described
    code = ran[0].code
    assert code is not None
    assert (code.source, code.tools, code.sandbox.memory_bytes) == ("print('${input}')", ["builtin.*"], 64 << 20)
    assert server.asked()[1].messages[-1]["content"] == "17\nprinted:\nprinted"


@pytest.mark.parametrize(
    ("limits", "said", "answers"),
    [
        ({"max_turns": 3}, "no answer after 3 turns", 3),
        ({"budget": {"tokens": 40}}, "45 tokens used, of a budget of 40", 3),
        ({"budget": {"steps": 4}}, "4 steps made and 1 more wanted", 2),
        ({"budget": {"steps": 5}}, "5 steps made and 1 more wanted", 3),
    ],
)
async def test_an_agent_ends_at_its_limits(
    server: ScriptedModel, models: HttpModels, tmp_path: Path, limits: dict[str, Any], said: str, answers: int
) -> None:
    server.script = counting(100)
    async with bench(tmp_path, models) as one:
        run = await one.run([agent(**limits)], "x")
    assert run["error"]["type"] == "budget"
    assert said in run["error"]["message"]
    assert len(server.asked()) == answers


async def test_the_token_budget_bounds_every_answer(server: ScriptedModel, models: HttpModels, tmp_path: Path) -> None:
    server.script = counting(1)
    async with bench(tmp_path, models) as one:
        await one.run([agent(budget={"tokens": 100}, max_tokens=90)], "x")
    assert [asked.body["max_tokens"] for asked in server.asked()] == [90, 85]


@pytest.mark.parametrize(("second", "status"), [('{"n": 1}', "completed"), ("still no", "failed")])
async def test_an_output_that_does_not_fit_is_repaired_once(
    server: ScriptedModel, models: HttpModels, tmp_path: Path, second: str, status: str
) -> None:
    server.script = lambda asked: [Say(calls=(noop(),)), Say(text="it is one"), Say(text=second)][asked.turn]
    async with bench(tmp_path, models) as one:
        run = await one.run([agent(output=SCHEMA, max_turns=2)], "x")
    assert run["status"] == status
    if status == "completed":
        assert run["output"] == {"fix": {"n": 1}}
    else:
        assert run["error"]["type"] == "schema"
    first, _, repair = server.asked()
    assert "JSON Schema" in first.messages[0]["content"]
    assert "response_format" not in first.body
    assert repair.body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert "tools" not in repair.body
    assert "not JSON" in repair.messages[-1]["content"]


async def test_a_turn_is_tried_again_by_the_agents_policy(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    server.script = lambda _asked: Say(text="done") if len(server.asked()) > 2 else Say(status=429)
    async with bench(tmp_path, models) as one:
        run = await one.run([agent(retry={"max": 2, "backoff": "10ms"})], "x")
        server.script = lambda _asked: Say(status=500)
        failed = await one.run([agent()], "x")
    assert run["output"] == {"fix": "done"}
    assert failed["error"]["type"] == "model"
    assert failed["error"]["path"] == "fix#1/model"


async def test_a_timeout_ends_the_agent_and_what_it_does(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    server.hold(lambda asked: asked.turn == 1)
    server.script = counting(9)
    async with bench(tmp_path, models) as one:
        run = await one.run([agent(timeout="1500ms")], "x")
        steps = {step["path"]: step["status"] for step in await one.steps(run["id"])}
    assert run["error"]["type"] == "timeout"
    assert "after 2 turns" in run["error"]["message"]
    assert (steps["fix"], steps["fix#2/model"]) == ("failed", "cancelled")


async def test_cancelling_the_run_ends_the_agent(server: ScriptedModel, models: HttpModels, tmp_path: Path) -> None:
    server.hold(lambda asked: asked.turn == 1)
    server.script = counting(9)
    async with bench(tmp_path, models) as one:
        run_id = await one.submit([agent()], "x")
        await asyncio.to_thread(server.wait_for, 2)
        await one.engine.service.cancel(one.principal, run_id, "enough")
        run = await one.ended(run_id)
    assert run["status"] == "cancelled"


@pytest.mark.parametrize("stop_at", [0, 1, 3])
async def test_a_crash_resumes_in_mid_conversation(
    server: ScriptedModel, models: HttpModels, tmp_path: Path, stop_at: int
) -> None:
    again = threading.Event()
    performed: list[str] = []

    def perform(assignment: Assignment) -> Report:
        performed.append(assignment.path)
        return echo(assignment)

    server.script = lambda asked: (
        Say(calls=(noop(turn=asked.turn), ("nobody", {}))) if asked.turn < 4 else Say(text="done")
    )
    server.hold(lambda asked: asked.turn == stop_at and not again.is_set())
    async with bench(tmp_path, models, perform) as one:
        run_id = await one.submit([agent()], "x")
        await asyncio.to_thread(server.wait_for, stop_at + 1)
    again.set()
    async with bench(tmp_path, models, perform) as one:
        run = await one.ended(run_id)
    assert run["output"] == {"fix": "done"}
    assert performed == [f"fix#{turn}/call0" for turn in range(1, 5)]
    asked = server.asked()
    assert [one.turn for one in asked] == [*range(stop_at + 1), *range(stop_at, 5)]
    assert asked[stop_at].body == asked[stop_at + 1].body, "the conversation is the same after the crash"


async def test_the_journal_grows_linearly_with_turns(server: ScriptedModel, models: HttpModels, tmp_path: Path) -> None:
    sizes = []
    async with bench(tmp_path, models) as one:
        for turns in (10, 20, 40):
            server.script = counting(turns)
            run = await one.run([agent(max_turns=100)], "x" * 1000)
            assert run["status"] == "completed"
            sizes.append(await one.journal_bytes(run["id"]))
    first, second = (sizes[1] - sizes[0]) / 10, (sizes[2] - sizes[1]) / 20
    assert second == pytest.approx(first, rel=0.05)


async def test_policy_outage_parks_a_turn(server: ScriptedModel, models: HttpModels, tmp_path: Path) -> None:
    async with bench(tmp_path, models) as one:
        models.refusals = [PolicyUnavailable("down")]
        run = await one.run([agent()], "x")
        events = [event["type"] for event in await one.events(run["id"])]
    assert run["output"] == {"fix": "done"}
    assert "step.waiting" in events


async def test_labels_follow_what_the_model_read(server: ScriptedModel, models: HttpModels, tmp_path: Path) -> None:
    server.script = lambda asked: (
        Say(calls=(("run_python", {"code": f"{asked.turn}"}),)) if asked.turn < 2 else Say(text="done")
    )
    async with bench(tmp_path, models) as one:
        plain = {"prompt": "constant", "code": True}
        trusted = await one.run([{"id": "fix", "agent": plain}])
        step = {"id": "fix", "agent": {**plain, "inputs": {"log": "artifact://art_00000000000000000000000001"}}}
        data = await one.run([step])
        labels = [await one.step(run["id"], "fix") for run in (trusted, data)]
    assert [one["labels"]["integrity"] for one in labels] == ["trusted", "untrusted"]
    assert [call.labels["integrity"] for call in models.calls] == [
        *("trusted", "trusted", "trusted"),
        *("trusted", "untrusted", "untrusted"),
    ]


@pytest.mark.parametrize("arguments", ["[" * 50_000, '{"a": "\\ud800"}', '{"a": 1e999}', '"x"', "{" + '"a":' * 3000])
async def test_hostile_arguments_cost_their_call_only(
    server: ScriptedModel, models: HttpModels, tmp_path: Path, arguments: str
) -> None:
    many = tuple(("builtin__noop", arguments) for _ in range(50))
    server.script = lambda asked: Say(calls=many) if asked.turn == 0 else Say(text="done")
    async with bench(tmp_path, models) as one:
        run = await one.run([agent()], "x")
    assert run["output"] == {"fix": "done"}
    asked = server.asked()[1]
    assert sum(message["role"] == "tool" for message in asked.messages) == 33
    assert len(json.dumps(asked.messages)) < 100_000
