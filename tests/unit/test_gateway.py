"""Tool calls of guests at the control plane: what is answered when the world changes while it is being decided."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import anyio
import pytest

from controlplane.authorization.values import Decision, EntryPoint
from controlplane.nodes.inventory import Inventory
from controlplane.placement.dispatcher import Dispatcher
from controlplane.runs.controller import Controller
from controlplane.runs.gateway import Gateway
from controlplane.runs.hub import Hub
from controlplane.runs.journal import Journal, JournalFailed
from controlplane.runs.state import RunState, StepState
from controlplane.runs.transitions import Machine
from controlplane.secrets.broker import SecretUnavailable
from controlplane.store import Write
from controlplane.tools.registry import ToolRegistry
from controlplane.workflows.graph import compile_workflow
from dataplane.protocol import Ack, AuthorizeAnswer, AuthorizeRequest, CallResult

pytestmark = pytest.mark.anyio
Done = Callable[[BaseException | None], None]


class HeldJournal:
    """FIFO, as the real one; nothing is durable before ``commit``, unless it is ``open``."""

    def __init__(self) -> None:
        self.open = True
        self.waiting: list[Done] = []
        self.written: list[Write] = []
        self.refused: set[str] = set()

    def append(self, writes: Sequence[Write], done: Done | None = None) -> None:
        self.written.extend(writes)
        refused = any(value in self.refused for write in writes for value in write.row)
        if done is None:
            return
        if refused:
            asyncio.get_running_loop().call_soon(done, JournalFailed("disk full"))
        elif self.open:
            asyncio.get_running_loop().call_soon(done, None)
        else:
            self.waiting.append(done)

    def commit(self) -> None:
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done(None)

    def rows(self, table: str) -> int:
        return sum(1 for write in self.written if write.sql.startswith(f'INSERT INTO "{table}"'))


class Allowing:
    """A dispatcher and its enforcer: allows everything; ``meanwhile`` happens while the secrets are leased."""

    def __init__(self, tools: ToolRegistry) -> None:
        self.tools = tools
        self.enforcer = self
        self.asked = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def ask_many(self, questions: list[Any]) -> list[Decision]:
        return [self._decision() for _ in questions]

    def _decision(self) -> Decision:
        self.asked += 1
        return Decision(
            id=f"dec_{self.asked}",
            entry=EntryPoint.TOOL,
            allow=True,
            reasons=(),
            obligations=(),
            revision="r",
            engine="e",
            input_digest="d",
            input={},
        )

    async def lease(self, tenant: str, call: object) -> None:
        self.meanwhile()


class World:
    """Runs with one code step each, running on node ``n1``."""

    def __init__(self) -> None:
        self.journal = HeldJournal()
        unused: Any = None
        self.dispatcher = Allowing(ToolRegistry(unused, unused))
        self.controller = Controller(cast(Journal, self.journal), Inventory(), Hub())
        self.gateway = Gateway(self.controller, cast(Dispatcher, self.dispatcher))

    def running(self, run_id: str = "run_1") -> tuple[RunState, StepState]:
        steps = [{"id": "a", "code": {"python": "1", "tools": ["builtin.*"]}}]
        run = RunState(
            tenant="default",
            id=run_id,
            workflow=compile_workflow({"stockade": "1", "name": "t", "steps": steps}),
            input=None,
            principal={"id": "key_1", "kind": "person", "scopes": []},
            created_ns=0,
        )
        self.controller.runs[run.id] = run
        self.controller.apply(run, lambda machine: machine.start())
        step = run.steps["a"]
        self.assign(run, step, "n1", f"att_{run_id}")
        return run, step

    def assign(self, run: RunState, step: StepState, node: str, attempt: str) -> None:
        self.controller.apply(run, lambda m: m.assigned(step, node=node, node_name=node, attempt=attempt, tier=None))
        self.controller.attempts[attempt] = (run, step)

    async def authorize(self, *steps: StepState) -> list[AuthorizeAnswer]:
        return await self.gateway.authorize("n1", [_asking(step) for step in steps])

    async def record(self, step: StepState) -> Ack:
        (key,) = step.calls
        result = CallResult(attempt=step.attempt or "", fence=step.fence, key=key, ok=True, value={"x": 1})
        return (await self.gateway.record("n1", [result]))[0]


def _asking(step: StepState) -> AuthorizeRequest:
    return AuthorizeRequest(
        attempt=step.attempt or "", fence=step.fence, call=1, tool="builtin.noop", args={"run": step.path}
    )


@pytest.fixture
def world() -> World:
    return World()


async def test_a_call_is_allowed_and_its_decision_logged(world: World) -> None:
    run, step = world.running()
    (answer,) = await world.authorize(step)
    assert answer.allow
    assert [call.state for call in step.calls.values()] == ["authorized"]
    assert world.journal.rows("decision") == run.decisions > 0


async def test_an_attempt_superseded_while_secrets_are_leased_is_stale_and_leaves_no_trace(world: World) -> None:
    run, step = world.running()

    def moves() -> None:
        world.controller.apply(run, lambda machine: machine.lost(step, "node_lost", "gone"))
        world.assign(run, step, "n2", "att_new")

    world.dispatcher.meanwhile = moves
    (answer,) = await world.authorize(step)
    assert answer.stale and not answer.allow
    assert step.calls == {}
    assert world.journal.rows("decision") == run.decisions


async def test_a_step_cancelled_while_secrets_are_leased_makes_no_call(world: World) -> None:
    run, step = world.running()

    def cancelled() -> None:
        world.controller.apply(run, lambda machine: machine.cancel("enough"))

    world.dispatcher.meanwhile = cancelled
    (answer,) = await world.authorize(step)
    assert answer.stale and not answer.allow


async def test_decisions_of_a_call_without_its_secret_are_logged(world: World) -> None:
    run, step = world.running()

    def gone() -> None:
        raise SecretUnavailable("token")

    world.dispatcher.meanwhile = gone
    (answer,) = await world.authorize(step)
    assert answer.error is not None
    assert answer.error["type"] == "policy_denied"
    assert world.journal.rows("decision") == run.decisions == world.dispatcher.asked


async def test_a_result_sent_again_is_acknowledged_only_once_the_first_is_durable(world: World) -> None:
    _run, step = world.running()
    await world.authorize(step)
    world.journal.open = False
    acks: list[Ack] = []

    async def record() -> None:
        acks.append(await world.record(step))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(record)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(record)
        await anyio.wait_all_tasks_blocked()
        assert acks == []
        world.journal.commit()
    assert [ack.ok for ack in acks] == [True, True]


async def test_a_run_that_is_not_stored_costs_the_other_attempts_of_the_batch_nothing(world: World) -> None:
    _broken, first = world.running("run_1")
    _whole, second = world.running("run_2")
    world.journal.refused = {"run_1"}
    answers = await world.authorize(first, second)
    assert [answer.unavailable for answer in answers] == [True, False]
    assert [answer.allow for answer in answers] == [False, True]


async def test_a_recorded_call_is_not_answered_to_an_attempt_superseded_while_it_is_looked_up(world: World) -> None:
    run, step = world.running()

    def has_effect(machine: Machine) -> None:
        for call in step.calls.values():
            call.effect = "immediate"

    await world.authorize(step)
    await world.record(step)
    world.controller.apply(run, has_effect)
    world.journal.open = False
    answers: list[AuthorizeAnswer] = []

    async def ask() -> None:
        answers.extend(await world.authorize(step))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        world.controller.apply(run, lambda machine: machine.lost(step, "node_lost", "gone"))
        world.journal.commit()
    assert [(answer.stale, answer.recorded) for answer in answers] == [(True, False)]
