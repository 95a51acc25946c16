"""The policy engine broken in every way we know: nothing is allowed, soon, with a distinct reason, and it recovers."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
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
	startswith(input.step, "runaway")
	not later
	some a in numbers.range(1, 900)
	some b in numbers.range(1, 900)
	some c in numbers.range(1, 900)
	a + b + c < 0
}
later if {
	input.step == "runaway-at-1"
	input.now_ns > 1
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


def _processes(engine: EmbeddedEngine) -> list[int]:
    return [*engine.pids, *([engine.template_pid] if engine.template_pid is not None else [])]


@pytest.mark.parametrize("is_lost", ["workers", "template", "all"])
async def test_killed_processes_are_replaced(engine: EmbeddedEngine, enforcer: Enforcer, is_lost: str) -> None:
    for _ in range(3):
        template = [engine.template_pid or 0]
        before = {"workers": engine.pids, "template": template, "all": _processes(engine)}[is_lost]
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(10):
            while set(before) & set(_processes(engine)) or len(engine.pids) < 4:
                await enforcer.ask_many([ALLOW])
        await _recovers(enforcer)


@pytest.mark.parametrize("is_stopped", ["workers", "all"])
async def test_stopped_processes_deny_within_250_ms_and_are_replaced(
    engine: EmbeddedEngine, enforcer: Enforcer, is_stopped: str
) -> None:
    await _recovers(enforcer)
    for pid in engine.pids if is_stopped == "workers" else _processes(engine):
        os.kill(pid, signal.SIGSTOP)
    begun = time.perf_counter()
    await enforcer.ask_many([ALLOW])
    assert time.perf_counter() - begun < 0.25
    await _recovers(enforcer)


async def test_an_engine_that_cannot_start_denies_soon_and_recovers(
    engine: EmbeddedEngine, enforcer: Enforcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    for pid in _processes(engine):
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


class Others:
    """Asks one question after the other while something is wrong, and remembers how that went."""

    def __init__(self, enforcer: Enforcer) -> None:
        self.enforcer = enforcer
        self.seconds: list[float] = []
        self.refused: list[object] = []

    async def ask_until(self, over: Callable[[], bool]) -> None:
        while not over():
            begun = time.perf_counter()
            (answer,) = await self.enforcer.ask_many([ALLOW])
            self.seconds.append(time.perf_counter() - begun)
            if not (isinstance(answer, Decision) and answer.allow):
                self.refused.append(answer)

    @property
    def p99(self) -> float:
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]


@pytest.mark.parametrize("is_new", [False, True], ids=["the same again", "each another"])
async def test_runaways_back_to_back_refuse_nobody_else(enforcer: Enforcer, is_new: bool) -> None:
    """Five at a time, five times over, at once: a rule that spends every worker it is given."""
    runaways, others, slowest, over = itertools.count(), Others(enforcer), 0.0, False

    async def run_away() -> None:
        nonlocal slowest
        for _ in range(5):
            step = f"runaway-{next(runaways)}" if is_new else "runaway"
            begun = time.perf_counter()
            (answer,) = await enforcer.ask_many([question(step=step)])
            slowest = max(slowest, time.perf_counter() - begun)
            assert isinstance(answer, PolicyUnavailable)

    async with anyio.create_task_group() as group:
        group.start_soon(others.ask_until, lambda: over)
        async with anyio.create_task_group() as five:
            for _ in range(5):
                five.start_soon(run_away)
        over = True
    assert others.refused == []
    assert len(others.seconds) > 100
    assert others.p99 < 0.125
    assert slowest < 0.25 + 0.1


async def test_runaways_in_one_batch_cost_the_rest_of_it_nothing(enforcer: Enforcer) -> None:
    steps = ["allow", "runaway-0", "runaway-1", "allow", "runaway-2", *["allow"] * 20]
    answers = await enforcer.ask_many([question(step=step) for step in steps])
    assert [isinstance(one, Decision) and one.allow for one in answers] == [step == "allow" for step in steps]


async def test_a_batch_does_not_wait_for_what_runs_away_in_it(engine: EmbeddedEngine, enforcer: Enforcer) -> None:
    """Alone a question has its 200 ms; whoever asked for many steps gets the rest as soon as it is there."""
    answers = await enforcer.ask_many([ALLOW, question(step="runaway"), ALLOW])
    assert isinstance(answers[1], PolicyUnavailable)
    assert "alone it has more time" in answers[1].message
    assert [isinstance(one, Decision) and one.allow for one in answers] == [True, False, True]


async def test_a_step_waits_for_all_its_own_questions(enforcer: Enforcer) -> None:
    """Nobody else is kept waiting, and it can do nothing with half of its answers."""
    asked = [question(step="runaway-at-1", now_ns=now_ns) for now_ns in (1, 2)]
    first, second = await enforcer.ask_many(asked)
    assert isinstance(first, PolicyUnavailable)
    assert "alone it has more time" not in first.message
    assert isinstance(second, Decision)


async def test_what_killed_a_worker_runs_alone_the_next_time(engine: EmbeddedEngine, enforcer: Enforcer) -> None:
    """So nobody is behind it any more, not even for the 10 ms until it is noticed."""
    await enforcer.ask_many([question(step="runaway")])
    for later in range(1, 4):
        # Another moment and another run: the same question to a rule.
        again = question(step="runaway", now_ns=later, run=f"run_{later}")
        alone = engine.ran_alone
        answers = await enforcer.ask_many([again, *[ALLOW] * 40])
        assert isinstance(answers[0], PolicyUnavailable)
        assert all(isinstance(one, Decision) and one.allow for one in answers[1:])
        assert engine.ran_alone == alone + 1


async def test_a_question_in_quarantine_that_is_answered_is_released(
    engine: EmbeddedEngine, enforcer: Enforcer
) -> None:
    """What it was that time is over: it is answered alone, and from then on like every other."""
    with pytest.raises(PolicyUnavailable):
        await enforcer.ask(question(step="runaway-at-1", now_ns=1))
    assert engine.ran_alone == 0
    for later in (2, 3):
        assert not (await enforcer.ask(question(step="runaway-at-1", now_ns=later))).allow
        assert engine.ran_alone == 1


async def test_no_worker_outlives_the_engine() -> None:
    engine = EmbeddedEngine(bundle_of({"tool.rego": RULES}, {}))
    await engine.start()
    pids = _processes(engine)
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
    print(*engine.pids, engine.template_pid, flush=True)
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


async def test_an_integer_past_64_bits_is_a_question_like_any_other(enforcer: Enforcer) -> None:
    asked = question(step="allow", args={"n": {"value": 2**70}})
    decision = await enforcer.ask(asked)
    assert decision.allow
    assert decision.input_digest == asked.digest()


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
