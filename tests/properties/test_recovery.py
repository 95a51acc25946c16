"""Recovery equals what was lost: random workflows, random events, a crash at random moments, and on to the end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import Session

from controlplane.inference.values import ModelAnswer
from controlplane.runs import recovery
from controlplane.runs.agent_turns import is_turn
from controlplane.runs.journal import _Entry, _transaction
from controlplane.runs.state import Frame, RunState, StepState, error_value
from controlplane.runs.transitions import Machine
from controlplane.store import Store, Write, canonical, insert, upsert
from controlplane.tables import PrincipalRow, RunDefinitionRow, RunRow
from controlplane.workflows.graph import compile_workflow

Steps = list[dict[str, Any]]
NOOP = {"tool": "builtin.noop"}
EVENTS_MOST = 400


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(tmp_path_factory.mktemp("recovery") / "stockade.db")
    made.migrate()
    writer = made.writer()
    who = {
        "tenant": "default",
        "id": "key_1",
        "name": "ann",
        "kind": "person",
        "scopes": "[]",
        "groups": "[]",
        "key_prefix": "",
        "key_hash": "",
    }
    _transaction(writer, [_Entry([upsert(PrincipalRow, {**who, "created_ns": 0})], None)])
    writer.close()
    yield made
    made.close()


class Author:
    """Writes a random workflow of every verb that this version has."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.count = 0

    def steps(self, depth: int, most: int) -> Steps:
        return [self.step(depth) for _ in range(self.chance.randint(1, most))]

    def step(self, depth: int) -> dict[str, Any]:
        self.count += 1
        step: dict[str, Any] = {"id": f"s{self.count}"}
        verbs = ["tool", "tool", "llm", "agent", "agent", "set", "wait"]
        verb = self.chance.choice([*verbs, "if", "map", "map", "parallel", "approve"] if depth < 3 else verbs)
        if verb == "tool":
            step |= NOOP
            if self.chance.random() < 0.4:
                step["retry"] = {"max": self.chance.randint(0, 2), "backoff": "1s"}
        elif verb == "llm":
            step["llm"] = {"model": "m", "prompt": "say ${input.n}"}
            if self.chance.random() < 0.5:
                step["llm"]["output"] = {"type": "object"}
            if self.chance.random() < 0.4:
                step["retry"] = {"max": self.chance.randint(0, 2), "backoff": "1s", "on": ["model", "schema"]}
        elif verb == "agent":
            agent: dict[str, Any] = {"model": "m", "prompt": "say ${input.n}", "tools": ["builtin.*"], "max_turns": 4}
            if self.chance.random() < 0.4:
                agent |= {"output": {"type": "object"}}
            if self.chance.random() < 0.4:
                agent |= {"budget": {"steps": self.chance.randint(1, 6), "tokens": self.chance.randint(2, 20)}}
            if self.chance.random() < 0.5:
                step["timeout"] = "60s"
            step["agent"] = agent
        elif verb == "set":
            step["set"] = "${input.n}"
        elif verb == "wait":
            step["wait"] = "5s"
        elif verb == "if":
            step |= {"if": self.chance.choice(["${input.n > 1}", "${input.n > 5}"]), "do": self.steps(depth + 1, 2)}
            if self.chance.random() < 0.5:
                step["else"] = self.steps(depth + 1, 1)
        elif verb == "map":
            over, width = list(range(self.chance.randint(0, 4))), self.chance.randint(1, 3)
            loop = {"over": over, "as": f"i{self.count}", "concurrency": width}
            step |= {"map": {**loop, "tolerate": self.chance.choice([0, 0, 0.5])}, "do": self.steps(depth + 1, 2)}
        elif verb == "parallel":
            step |= {"parallel": {}, "do": self.steps(depth + 1, 3)}
        else:
            step["approve"] = {"ask": "ok?", "gates": []}
            if self.chance.random() < 0.5:
                step["approve"]["expires"] = "30s"
        if self.chance.random() < 0.2:
            step["on_error"] = "continue"
        return step


class World:
    """One run, its rows, and everything that can happen to it."""

    def __init__(self, store: Store, chance: random.Random, run_id: str) -> None:
        self.store, self.chance, self.now, self.attempts = store, chance, 1, 0
        self.connection = store.writer()
        self.connection.execute("PRAGMA synchronous=OFF")
        author = Author(chance)
        steps = author.steps(0, 4)
        wrapped = [{"id": "root", "parallel": {}, "do": steps}] if chance.random() < 0.6 else steps
        document = {"stockade": "1", "name": "t", "steps": wrapped}
        workflow = compile_workflow(document)
        who = {"id": "key_1", "kind": "person", "scopes": []}
        self.run = run = RunState(
            tenant="default", id=run_id, workflow=workflow, input={"n": 3}, principal=who, created_ns=0
        )
        key = {"tenant": run.tenant, "partition": run.partition}
        head = {
            **key, "id": run.id, "seq": 0, "v": 1, "status": "pending", "workflow_name": "t", "workflow_version": "0",
            "workflow_digest": workflow.digest, "principal": "key_1", "priority": 0, "labels": "{}", "decisions": 0,
            "denied": 0, "created_ns": 0, "updated_ns": 0,
        }  # fmt: skip
        fixed = {
            **key, "run": run.id, "v": 1, "definition": canonical(document), "input": canonical(run.input),
            "labels": "{}", "tools": "{}",
        }  # fmt: skip
        self.commit([insert(RunRow, head), insert(RunDefinitionRow, fixed)])
        self.apply(lambda machine: machine.start())

    def wanted(self) -> list[dict[str, Any]]:
        """Calls that a model may want: tools, programs, nonsense."""
        kinds: list[dict[str, Any]] = [
            {"name": "builtin__noop", "tool": "builtin.noop", "args": {"n": self.chance.randint(0, 9)}},
            {"name": "run_python", "code": "1 + 1"},
            {"name": "nobody", "arguments": "{", "error": "there is no function"},
        ]
        return [self.chance.choice(kinds) for _ in range(self.chance.randint(1, 3))]

    def commit(self, writes: list[Write]) -> None:
        if writes:
            _transaction(self.connection, [_Entry(writes, None)])

    def apply(self, act: Callable[[Machine], Any]) -> None:
        self.now += 1000
        machine = Machine(run=self.run, now_ns=self.now)
        act(machine)
        self.commit(machine.outcome().writes)

    def crash(self) -> None:
        """Memory is lost; compare what comes back with what there was."""
        before = shape(self.run)
        with Session(self.store._engine) as session:
            found = recovery.load(session, "default", self.run.id)
        assert found is not None
        self.run = found[0]
        assert shape(self.run) == before

        def go_on(machine: Machine) -> None:
            for step in list(self.run.steps.values()):
                machine.resume(step)
            machine.start()

        self.apply(go_on)

    def possible(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for step in self.run.steps.values():
            found += [(kind, step.path) for kind in kinds(step)]
        if found and self.run.status == "running" and self.chance.random() < 0.1:
            found.append(("cancel", ""))
        return found

    def do(self, kind: str, path: str) -> None:
        if kind == "cancel":
            self.apply(lambda machine: machine.cancel("enough"))
            return
        step = self.run.steps[path]
        if kind == "assign":
            self.attempts += 1
            attempt = f"att_{self.attempts}"
            self.apply(lambda m: m.assigned(step, node="n", node_name="n", attempt=attempt, tier=None))
        elif kind == "call":
            self.attempts += 1
            attempt = f"att_{self.attempts}"
            self.apply(lambda m: m.calling(step, attempt=attempt, decision="dec_1"))
        elif kind in ("answer", "nonsense", "calls") and not step.cancelling and is_turn(step):
            text = {"answer": '{"x": 1}', "nonsense": "no JSON", "calls": ""}[kind]
            wanted = self.wanted() if kind == "calls" else []
            self.apply(lambda m: m.turn_answered(step, answer(text), wanted))
        elif kind in ("answer", "nonsense") and not step.cancelling:
            self.apply(lambda m: m.answered(step, answer('{"x": 1}' if kind == "answer" else "no JSON")))
        elif kind == "complete" and not step.cancelling:
            self.apply(lambda m: m.complete(step, {"x": path}))
        elif kind in ("complete", "fail", "answer", "nonsense", "calls"):
            self.apply(lambda m: m.fail(step, error_value("tool", "no")))
        elif kind == "lost":
            self.apply(lambda m: m.lost(step, "node_lost", "gone"))
        elif kind == "timer":
            self.now = max(self.now, step.due_ns or 0)
            self.apply(lambda m: m.timer(step))
        else:
            self.apply(lambda m: m.decide_approval(step, approve=kind == "yes", by="ann", comment=""))


def talk(step: StepState) -> list[str]:
    """What may happen to a model that is being asked."""
    return ["answer", "nonsense", "calls", "calls", "calls", "fail", "lost"] if is_turn(step) else ["answer"] * 2


def answer(text: str) -> ModelAnswer:
    return ModelAnswer(
        message={"role": "assistant", "content": text}, finish_reason="stop", model="m", replica="r", prompt_tokens=1,
        completion_tokens=1, seconds=0.1,
    )  # fmt: skip


def kinds(step: StepState) -> list[str]:
    """What may happen next to a step that has not ended."""
    verb, status = step.spec.verb.value, step.status
    if step.terminal:
        return []
    if verb == "llm" and status == "running":
        return [*talk(step), "nonsense", "fail", "lost"]
    if verb == "llm" and status == "ready":
        return ["call"]
    if verb == "agent" and status == "running":
        return ["timer"] if step.due_ns else []
    if verb in ("tool", "code") and status == "running":
        return ["complete", "complete", "complete", "fail", "lost"]
    if verb in ("tool", "llm") and status == "waiting":
        return ["timer"]
    if verb in ("tool", "code"):
        return ["assign"] if status == "ready" else []
    if verb == "wait" and status == "waiting":
        return ["timer"]
    if verb == "approve" and status == "waiting":
        return ["yes", "no", *(["timer"] if step.due_ns else [])]
    return []


def shape(run: RunState) -> dict[str, Any]:
    """Everything of a run that later transitions depend on. A step that only waits for its dispatch has no row."""
    found: dict[str, Any] = {"run": (run.seq, run.status, run.events, run.output, run.cancel_reason)}

    def frame(one: Frame) -> None:
        found[f"frame {one.prefix}"] = (one.unfinished, one.failure, one.cancelled)
        for step in one.steps.values():
            status = "pending" if step.status == "ready" and step.number == 0 else step.status
            found[step.path] = (status, step.number, step.failures, step.output, step.error)
            if not step.terminal:
                found[f"{step.path} open"] = (
                    *(step.attempt, step.fence, step.node, step.due_ns, step.cancelling),
                    *(step.detail, step.next_item, step.failed_items, step.conversation, dict(step.said)),
                )
            if not step.terminal:
                for below in step.frames.values():
                    frame(below)

    frame(run.root)
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(min_value=0, max_value=2**63))
def test_a_run_taken_from_the_database_is_the_run_that_was_lost(store: Store, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a seed, not a secret
    world = World(store, chance, f"run_{seed}_{id(chance)}")
    crashes = {chance.randint(0, 25) for _ in range(4)}
    for event in range(EVENTS_MOST):
        if world.run.terminal:
            break
        if event in crashes:
            world.crash()
            continue
        possible = world.possible()
        assert possible or world.run.terminal, "the run is stuck: nothing can happen to it any more"
        world.do(*chance.choice(possible))
    world.connection.close()
    assert world.run.terminal
