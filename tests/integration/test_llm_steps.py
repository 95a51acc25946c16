"""``llm`` steps against a scripted server: what is asked, what is recorded, and what happens when something breaks."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from controlplane.authorization.values import PolicyUnavailable
from controlplane.runs.journal import JournalFailed
from controlplane.store import Write
from tests.integration.model_bench import bench
from tests.model_http import HttpModels, decision
from tests.scripted_model import Asked, Say, ScriptedModel

pytestmark = pytest.mark.anyio
SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    with ScriptedModel(lambda _asked: Say(text="hello")) as one:
        yield one


@pytest.fixture
def models(server: ScriptedModel) -> HttpModels:
    return HttpModels(server.url)


def llm(**more: Any) -> dict[str, Any]:
    modifiers = {name: more.pop(name) for name in ("retry", "timeout", "on_error") if name in more}
    return {"id": "a", "llm": {"prompt": "say ${input}", **more}, **modifiers}


async def test_text_is_the_output_and_usage_is_recorded(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    async with bench(tmp_path, models) as one:
        run = await one.run([llm(system="be short", temperature=0, max_tokens=9, seed=1)], "this")
        assert (run["status"], run["output"], run["error"]) == ("completed", {"a": "hello"}, None)
        step = await one.step(run["id"], "a")
        events = [event["type"] for event in await one.events(run["id"])]
    (asked,) = server.asked()
    assert asked.messages == [{"role": "system", "content": "be short"}, {"role": "user", "content": "say this"}]
    assert {name: asked.body[name] for name in ("temperature", "max_tokens", "seed")} == {
        "temperature": 0,
        "max_tokens": 9,
        "seed": 1,
    }
    assert step["detail"]["usage"] == {"prompt_tokens": 10, "completion_tokens": 5}
    assert (step["detail"]["model"], step["node"], step["number"]) == ("scripted", None, 1)
    assert step["decision_id"].startswith("dec_")
    assert step["labels"] == {"integrity": "user", "sources": ["input", "model:scripted"]}
    assert events == [
        *("run.created", "run.running", "step.calling", "step.answered", "step.completed", "run.completed"),
    ]


async def test_a_schema_is_asked_for_and_held(server: ScriptedModel, models: HttpModels, tmp_path: Path) -> None:
    server.script = lambda _asked: Say(text='```json\n{"n": 3}\n```')
    async with bench(tmp_path, models) as one:
        run = await one.run([llm(output=SCHEMA), {"id": "b", "set": "${steps.a.output.n + 1}"}], "x")
    assert run["output"] == {"a": {"n": 3}, "b": 4}
    assert server.asked()[0].body["response_format"]["json_schema"] == {"name": "a", "schema": SCHEMA}


async def test_an_answer_that_does_not_fit_is_repaired_once(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    server.script = lambda asked: Say(text='{"n": "three"}' if asked.turn == 0 else '{"n": 3}')
    async with bench(tmp_path, models) as one:
        run = await one.run([llm(output=SCHEMA)], "x")
        step = await one.step(run["id"], "a")
    assert run["output"] == {"a": {"n": 3}}
    first, second = server.asked()
    assert second.messages[1] == {"role": "assistant", "content": '{"n": "three"}'}
    assert "/n" in second.messages[2]["content"]
    assert step["detail"]["usage"] == {"prompt_tokens": 20, "completion_tokens": 10}
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]


@pytest.mark.parametrize("text", ["no json", '{"n": 1.5}', "[" * 100_000, '{"n": NaN}', '{"n": 1, "\\ud800": 1}', ""])
async def test_an_answer_that_never_fits_is_an_error_of_type_schema(
    server: ScriptedModel, models: HttpModels, tmp_path: Path, text: str
) -> None:
    server.script = lambda _asked: Say(text=text)
    async with bench(tmp_path, models) as one:
        run = await one.run([llm(output=SCHEMA)], "x")
    assert (run["status"], run["error"]["type"]) == ("failed", "schema")
    assert len(server.asked()) == 2


async def test_text_that_cannot_be_stored_is_cleaned(server: ScriptedModel, models: HttpModels, tmp_path: Path) -> None:
    server.script = lambda _asked: Say(text="a\x00b\ud800c")
    async with bench(tmp_path, models) as one:
        run = await one.run([llm()], "x")
    assert run["output"] == {"a": "a\ufffdb?c"}


@pytest.mark.parametrize(("status", "kind"), [(429, "rate_limited"), (500, "model"), (400, "schema")])
async def test_failures_have_types_and_are_retried_by_the_steps_policy(
    server: ScriptedModel, models: HttpModels, tmp_path: Path, status: int, kind: str
) -> None:
    server.script = lambda _asked: Say(text="hello") if len(server.asked()) == 2 else Say(status=status)
    retry = {"max": 1, "backoff": "10ms", "on": [kind]}
    async with bench(tmp_path, models) as one:
        run = await one.run([llm(on_error="continue"), {**llm(retry=retry), "id": "b"}], "x")
        server.script = lambda _asked: Say(status=status)
        failed = await one.run([llm()], "x")
        step = await one.step(run["id"], "b")
    assert run["output"]["a"] is None
    assert run["output"]["b"] == "hello"
    assert failed["error"]["type"] == kind
    assert len({asked.headers["Idempotency-Key"] for asked in server.asked()}) == 3
    assert step["failures"] == 0


async def test_a_timeout_aborts_the_call(server: ScriptedModel, models: HttpModels, tmp_path: Path) -> None:
    server.hold(lambda _asked: True)
    async with bench(tmp_path, models) as one:
        run = await one.run([llm(timeout="200ms")], "x")
    assert run["error"]["type"] == "timeout"


async def test_cancelling_the_run_aborts_the_call(server: ScriptedModel, models: HttpModels, tmp_path: Path) -> None:
    server.hold(lambda _asked: True)
    async with bench(tmp_path, models) as one:
        run_id = await one.submit([llm()], "x")
        await asyncio.to_thread(server.wait_for, 1)
        await one.engine.service.cancel(one.principal, run_id, "enough")
        run = await one.ended(run_id)
        step = await one.step(run_id, "a")
    assert (run["status"], step["status"]) == ("cancelled", "cancelled")


async def test_an_unrecorded_call_is_made_again_under_its_key_and_a_recorded_one_is_not(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    again = threading.Event()
    server.hold(lambda asked: "two" in str(asked.messages) and not again.is_set())
    steps = [{"id": "one", "llm": {"prompt": "one"}}, {"id": "two", "llm": {"prompt": "two"}}]
    async with bench(tmp_path, models) as one:
        run_id = await one.submit(steps)
        await asyncio.to_thread(server.wait_for, 2)
    again.set()
    async with bench(tmp_path, models) as one:
        run = await one.ended(run_id)
        step = await one.step(run_id, "two")
    assert run["output"] == {"one": "hello", "two": "hello"}
    asked = [(str(one.messages[0]["content"]), one.headers["Idempotency-Key"]) for one in server.asked()]
    assert [prompt for prompt, _ in asked] == ["one", "two", "two"]
    assert asked[1] == asked[2]
    assert step["failures"] == 0


async def test_a_crash_between_answer_and_repair_repeats_no_answer(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    again = threading.Event()
    server.script = lambda asked: Say(text="nonsense" if asked.turn == 0 else '{"n": 3}')
    server.hold(lambda asked: asked.turn == 1 and not again.is_set())
    async with bench(tmp_path, models) as one:
        run_id = await one.submit([llm(output=SCHEMA)], "x")
        await asyncio.to_thread(server.wait_for, 2)
    again.set()
    async with bench(tmp_path, models) as one:
        run = await one.ended(run_id)
    assert run["output"] == {"a": {"n": 3}}
    assert [asked.turn for asked in server.asked()] == [0, 1, 1]


async def test_an_answer_that_could_not_be_stored_is_asked_for_again_and_other_calls_of_its_run_too(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    came: Counter[str] = Counter()

    def is_first_of_b(asked: Asked) -> bool:
        came[asked.messages[0]["content"]] += 1
        return came["b"] == 1 and asked.messages[0]["content"] == "b"

    server.hold(is_first_of_b)
    both = [{"id": name, "llm": {"prompt": name}} for name in ("a", "b")]
    async with bench(tmp_path, models) as one:
        journal = one.engine.journal
        append, failed = journal.append, []

        def full_once(writes: Sequence[Write], done: Callable[[BaseException | None], None] | None = None) -> None:
            if not failed and done is not None and any("step.answered" in write.row for write in writes):
                failed.append("step.answered")
                asyncio.get_running_loop().call_soon(done, JournalFailed("disk full"))
            else:
                append(writes, done)

        journal.append = full_once  # type: ignore[method-assign]
        run = await one.run([{"id": "p", "parallel": {}, "do": both}])
    assert run["output"] == {"p": {"a": "hello", "b": "hello"}}
    assert failed
    assert came == {"a": 2, "b": 2}
    assert len({asked.headers["Idempotency-Key"] for asked in server.asked()}) == 2


async def test_policy_refuses_and_parks(server: ScriptedModel, models: HttpModels, tmp_path: Path) -> None:
    async with bench(tmp_path, models) as one:
        models.refusals = [decision(allow=False)]
        denied = await one.run([llm()], "x")
        models.refusals = [PolicyUnavailable("down"), PolicyUnavailable("down")]
        parked = await one.run([llm()], "x")
        events = [event["type"] for event in await one.events(parked["id"])]
    assert denied["error"]["type"] == "policy_denied"
    assert denied["decisions"]["denied"] == 1
    assert parked["output"] == {"a": "hello"}
    assert "step.waiting" in events
    assert len(server.asked()) == 1


async def test_a_model_nobody_has_and_messages_that_are_none_fail_the_step(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    async with bench(tmp_path, models) as one:
        unknown = await one.run([llm(model="nobody")], "x")
        step = {"id": "a", "llm": {"messages": "${input}"}}
        wrong = await one.run(
            [step], [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://h/"}}]}]
        )
        right = await one.run([step], [{"role": "user", "content": "hi"}])
    assert unknown["error"]["message"] == "there is no model 'nobody'"
    assert wrong["error"]["type"] == "schema"
    assert "image_url" in wrong["error"]["message"]
    assert right["output"] == {"a": "hello"}
    assert len(server.asked()) == 1


async def test_the_labels_of_a_prompt_reach_policy_and_the_answer(
    server: ScriptedModel, models: HttpModels, tmp_path: Path
) -> None:
    both = {"id": "b", "llm": {"prompt": "${steps.a.output} ${input}"}}
    async with bench(tmp_path, models) as one:
        run = await one.run([{"id": "a", "llm": {"prompt": "constant"}}, both], "x")
        first, second = await one.step(run["id"], "a"), await one.step(run["id"], "b")
    assert [call.labels["integrity"] for call in models.calls] == ["trusted", "user"]
    assert first["labels"] == {"integrity": "trusted", "sources": ["model:scripted"]}
    assert second["labels"]["integrity"] == "user"
