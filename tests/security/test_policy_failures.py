"""The policy engine broken in every way we know: nothing is allowed, soon, with a distinct reason, and it recovers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from controlplane.authorization.bundle import Bundle, bundle_of
from controlplane.authorization.embedded import EmbeddedEngine
from controlplane.authorization.enforcement import Enforcer
from controlplane.authorization.testing import StaticEngine, question
from controlplane.authorization.values import Decision, EntryPoint, PolicyUnavailable

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
decision := {"allow": true} if {
	input.step == "conflict"
}
decision := {"allow": false} if {
	input.step == "conflict"
}
"""
ALLOW = question(step="allow")


@pytest.fixture
async def engine() -> AsyncIterator[EmbeddedEngine]:
    one = EmbeddedEngine(bundle_of({"tool.rego": RULES}, {}))
    await one.start()
    yield one
    await one.close()


@pytest.fixture
def enforcer(engine: EmbeddedEngine) -> Enforcer:
    return Enforcer(engine, {})


async def _recovers(enforcer: Enforcer) -> None:
    with anyio.fail_after(10):
        while not any(isinstance(one, Decision) and one.allow for one in await enforcer.ask_many([ALLOW])):
            continue


async def _denied_soon(enforcer: Enforcer) -> Decision:
    begun = time.perf_counter()
    with pytest.raises(PolicyUnavailable) as caught:
        await enforcer.ask(ALLOW)
    assert time.perf_counter() - begun < 0.25
    assert caught.value.decision is not None
    assert caught.value.decision.allow is False
    assert caught.value.decision.reasons[0].code == "policy_unavailable"
    return caught.value.decision


async def test_killed_workers_are_replaced(engine: EmbeddedEngine, enforcer: Enforcer) -> None:
    for _ in range(3):
        before = set(engine.pids)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await _recovers(enforcer)
        assert not before & set(engine.pids)


async def test_stopped_workers_deny_within_250_ms_and_are_replaced(engine: EmbeddedEngine, enforcer: Enforcer) -> None:
    await _recovers(enforcer)
    stopped = list(engine.pids)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    begun = time.perf_counter()
    await enforcer.ask_many([ALLOW])
    assert time.perf_counter() - begun < 0.25
    await _recovers(enforcer)


async def test_an_engine_that_cannot_start_denies_soon_and_recovers(
    engine: EmbeddedEngine, enforcer: Enforcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    for pid in engine.pids:
        os.kill(pid, signal.SIGKILL)
    decision = await _denied_soon(enforcer)
    assert decision.failure == "policy_unavailable"
    await _denied_soon(enforcer)
    monkeypatch.undo()
    await _recovers(enforcer)


async def test_starting_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    engine = EmbeddedEngine(bundle_of({"tool.rego": RULES}, {}))
    with pytest.raises(PolicyUnavailable, match="cannot be started: No such file"):
        await engine.start()
    await engine.close()


async def test_a_bundle_the_worker_refuses_is_reported() -> None:
    engine = EmbeddedEngine(Bundle(files={"bad.rego": "package a\nno rego"}, revision="bad"))
    with pytest.raises(PolicyUnavailable, match=r"could not load the bundle.*bad\.rego"):
        await engine.start()
    await engine.close()


async def test_a_rule_that_contradicts_itself_denies_and_names_the_place(enforcer: Enforcer) -> None:
    decision = await enforcer.ask(question(step="conflict"))
    assert (decision.allow, decision.failure) == (False, "malformed_answer")
    assert "tool.rego" in decision.reasons[0].message


async def test_a_runaway_rule_does_not_move_the_latency_of_others(enforcer: Enforcer) -> None:
    """Others are answered while the runaway is still in its worker: none waits for its 200 ms."""
    slowest = 0.0
    async with anyio.create_task_group() as group:
        group.start_soon(enforcer.ask_many, [question(step="runaway")])
        await asyncio.sleep(0)
        until = time.perf_counter() + 0.15
        while time.perf_counter() < until:
            begun = time.perf_counter()
            assert (await enforcer.ask(ALLOW)).allow
            slowest = max(slowest, time.perf_counter() - begun)
    assert slowest < 0.1


async def test_no_worker_outlives_the_engine() -> None:
    engine = EmbeddedEngine(bundle_of({"tool.rego": RULES}, {}))
    await engine.start()
    pids = engine.pids
    await engine.close()
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


PARENT = """
import asyncio, os, sys
from controlplane.authorization.bundle import bundle_of
from controlplane.authorization.embedded import EmbeddedEngine
from controlplane.authorization.testing import question

async def main():
    engine = EmbeddedEngine(bundle_of({"tool.rego": RULES}, {}), deadline_seconds=60)
    await engine.start()
    asking = asyncio.ensure_future(engine.decide([question(step="runaway")]))
    await asyncio.sleep(0)
    print(*engine.pids, flush=True)
    await asking

asyncio.run(main())
"""


async def test_a_worker_in_a_runaway_rule_dies_with_a_killed_parent() -> None:
    program = PARENT.replace("RULES", repr(RULES))
    parent = await anyio.open_process([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    async with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in (await parent.stdout.receive()).split()]
        parent.kill()
    assert pids
    with anyio.fail_after(5):
        for pid in pids:
            await anyio.to_thread.run_sync(_wait_until_gone, pid, abandon_on_cancel=True)


def _wait_until_gone(pid: int) -> None:
    while _is_running(pid):
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Odd(StaticEngine):
    """An adapter with a bug."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    async def decide(self, questions: Sequence[Any]) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.mark.parametrize("result", [None, [], {}, "allow", ValueError("the token is hunter2"), OSError(111, "refused")])
async def test_whatever_an_adapter_does_is_unavailable_and_says_nothing_of_its_input(result: Any) -> None:
    with pytest.raises(PolicyUnavailable) as caught:
        await Enforcer(Odd(result), {}).ask(ALLOW)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("answer", [True, {"allow": True}, None, 1, "allow"])
async def test_an_answer_that_is_no_decision_denies(answer: Any) -> None:
    decision = await Enforcer(Odd([answer]), {}).ask(ALLOW)
    assert (decision.allow, decision.failure) == (False, "malformed_answer")


async def test_an_engine_that_never_answers_is_unavailable_within_250_ms() -> None:
    class Silent(StaticEngine):
        async def decide(self, questions: Sequence[Any]) -> Any:
            await anyio.sleep_forever()

    await _denied_soon(Enforcer(Silent(), {}))


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"extra": 1}, "extra"),
        ({"tenant": 5}, "/tenant"),
        ({"now_ns": "now"}, "/now_ns"),
        ({"via": "moon"}, "/via"),
        ({"args": {"a": {"value": 1, "lables": {}}}}, "/args/a"),
        ({"args": {"a": {"value": object()}}}, "JSON"),
        ({"step": "\ud800"}, "JSON"),
        ({"args": {"a": {"value": "x" * (1 << 20)}}}, "artifact"),
    ],
)
async def test_a_question_off_its_schema_is_denied_before_the_engine(changes: dict[str, Any], pointer: str) -> None:
    engine = StaticEngine()
    await engine.start()
    decision = await Enforcer(engine, {}).ask(question(EntryPoint.TOOL, **changes))
    assert (decision.allow, decision.failure) == (False, "invalid_input")
    assert pointer in decision.reasons[0].message
    assert engine.asked == []
