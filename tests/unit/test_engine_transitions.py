"""The transitions alone: state and event in, writes and effects out."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.runs.state import RunState, StepState, error_value
from controlplane.runs.transitions import SECOND, Machine, Outcome
from controlplane.workflows.graph import compile_workflow

Steps = list[dict[str, Any]]


def make(steps: Steps, **more: Any) -> RunState:
    workflow = compile_workflow({"stockade": "1", "name": "t", "steps": steps, **more})
    principal = {"id": "key_1", "kind": "person", "scopes": []}
    return RunState(tenant="default", id="run_1", workflow=workflow, input={"n": 3}, principal=principal, created_ns=0)


def apply(run: RunState, act: Any, now_ns: int = 0) -> Outcome:
    machine = Machine(run=run, now_ns=now_ns)
    act(machine)
    return machine.outcome()


def start(run: RunState) -> Outcome:
    return apply(run, lambda machine: machine.start())


def begin(run: RunState, path: str) -> StepState:
    step = run.steps[path]
    apply(run, lambda m: m.assigned(step, node="n", node_name="n", attempt=f"att_{path}_{step.number}", tier=None))
    return step


def types(outcome: Outcome) -> list[str]:
    return [event["type"] for event in outcome.events]


NOOP = {"tool": "builtin.noop"}


def test_steps_run_in_order_and_the_run_completes() -> None:
    run = make([{"id": "a", **NOOP}, {"id": "b", "set": "${steps.a.output.x + 1}"}])
    assert [step.path for step in start(run).dispatch] == ["a"]
    step = begin(run, "a")
    outcome = apply(run, lambda m: m.complete(step, {"x": 1}))
    assert run.status == "completed"
    assert run.output == {"a": {"x": 1}, "b": 2}
    assert types(outcome) == ["step.completed", "step.completed", "run.completed"]


def test_events_are_numbered_without_gaps_and_seq_rises_by_one() -> None:
    run = make([{"id": "a", "set": 1}, {"id": "b", "set": 2}])
    outcome = start(run)
    assert [event["seq"] for event in outcome.events] == list(range(1, len(outcome.events) + 1))
    assert run.seq == 1


def test_a_false_when_skips_and_output_is_null() -> None:
    run = make([{"id": "a", "when": "${input.n > 5}", "set": 1}, {"id": "b", "set": "${steps.a.status}"}])
    start(run)
    assert run.output == {"a": None, "b": "skipped"}


def test_a_map_keeps_order_and_its_width() -> None:
    body = [{"id": "x", **NOOP}]
    run = make([{"id": "m", "map": {"over": [10, 20, 30], "concurrency": 2}, "do": body}])
    assert [step.path for step in start(run).dispatch] == ["m[0]/x", "m[1]/x"]
    second = begin(run, "m[1]/x")
    assert [step.path for step in apply(run, lambda m: m.complete(second, "two")).dispatch] == ["m[2]/x"]
    for index in (2, 0):
        step = begin(run, f"m[{index}]/x")
        apply(run, lambda m, step=step: m.complete(step, step.path))
    assert run.output == {"m": [{"x": "m[0]/x"}, {"x": "two"}, {"x": "m[2]/x"}]}


@pytest.mark.parametrize(("tolerate", "status"), [(0.0, "failed"), (0.34, "completed")])
def test_a_map_fails_above_what_it_tolerates(tolerate: float, status: str) -> None:
    body = [{"id": "x", **NOOP}]
    run = make([{"id": "m", "map": {"over": [1, 2, 3], "concurrency": 1, "tolerate": tolerate}, "do": body}])
    start(run)
    step = begin(run, "m[0]/x")
    apply(run, lambda m: m.fail(step, error_value("tool", "no")))
    while run.status == "running":
        path = next(step.path for step in run.steps.values() if step.path.endswith("/x") and not step.terminal)
        step = begin(run, path)
        apply(run, lambda m, step=step: m.complete(step, 1))
    assert run.status == status


def test_a_failure_cancels_running_siblings_and_waits_for_them() -> None:
    run = make([{"id": "p", "parallel": {}, "do": [{"id": "a", **NOOP}, {"id": "b", **NOOP}]}])
    start(run)
    a, b = begin(run, "p/a"), begin(run, "p/b")
    outcome = apply(run, lambda m: m.fail(a, error_value("tool", "no")))
    assert [cancel.attempt for cancel in outcome.cancels] == [b.attempt]
    assert run.status == "running"
    apply(run, lambda m: m.fail(b, error_value("cancelled", "stopped")))
    assert b.status == "cancelled"
    assert run.status == "failed"
    assert run.error is not None
    assert run.error["path"] == "p/a"


def test_on_error_continue_goes_on_with_the_error_as_a_value() -> None:
    run = make([{"id": "a", **NOOP, "on_error": "continue"}, {"id": "b", "set": "${steps.a.error.type}"}])
    start(run)
    step = begin(run, "a")
    apply(run, lambda m: m.fail(step, error_value("timeout", "slow")))
    assert run.output == {"a": None, "b": "timeout"}


def test_retries_wait_longer_each_time_and_end() -> None:
    retry = {"max": 2, "backoff": "1s..30s", "on": ["tool"]}
    run = make([{"id": "a", **NOOP, "retry": retry}])
    start(run)
    waits = []
    for _ in range(2):
        step = begin(run, "a")
        outcome = apply(run, lambda m, step=step: m.fail(step, error_value("tool", "no")))
        waits.append(outcome.events[-1]["data"]["in_seconds"])
        assert step.due_ns is not None
        assert [s.path for s in apply(run, lambda m, step=step: m.timer(step), step.due_ns).dispatch] == ["a"]
    assert waits == [1.0, 2.0]
    step = begin(run, "a")
    apply(run, lambda m: m.fail(step, error_value("tool", "no")))
    assert run.status == "failed"


def test_a_lost_node_burns_no_retry() -> None:
    run = make([{"id": "a", **NOOP}])
    start(run)
    step = begin(run, "a")
    outcome = apply(run, lambda m: m.lost(step, "node_lost", "gone"))
    assert [one.path for one in outcome.dispatch] == ["a"]
    assert (step.failures, step.number, step.attempt) == (0, 1, None)
    again = begin(run, "a")
    assert (again.number, again.fence) == (2, 2)


def test_a_denial_is_not_retried() -> None:
    run = make([{"id": "a", **NOOP, "retry": {"max": 5}}])
    start(run)
    step = run.steps["a"]
    apply(run, lambda m: m.fail(step, error_value("policy_denied", "no")))
    assert run.status == "failed"


def test_cancel_waits_for_attempts_and_is_harmless_twice() -> None:
    run = make([{"id": "a", **NOOP}, {"id": "b", "set": 1}])
    start(run)
    step = begin(run, "a")
    outcome = apply(run, lambda m: m.cancel("enough"))
    assert (run.status, len(outcome.cancels)) == ("cancelling", 1)
    assert apply(run, lambda m: m.cancel("again")).writes == []
    apply(run, lambda m: m.complete(step, None) if not step.cancelling else m.fail(step, error_value("cancelled", "x")))
    assert run.status == "cancelled"


def test_wait_ends_at_its_time_and_not_before() -> None:
    run = make([{"id": "w", "wait": "2s"}])
    outcome = start(run)
    assert [timer.due_ns for timer in outcome.timers] == [2 * SECOND]
    step = run.steps["w"]
    apply(run, lambda m: m.timer(step), SECOND)
    assert run.status == "running"
    apply(run, lambda m: m.timer(step), 2 * SECOND)
    assert run.status == "completed"


def test_approval_gates_and_records_who() -> None:
    run = make([{"id": "ok", "approve": {"ask": "go?"}}, {"id": "a", **NOOP}])
    assert "approval.requested" in types(start(run))
    step = run.steps["ok"]
    outcome = apply(run, lambda m: m.decide_approval(step, approve=True, by="ana", comment=""))
    assert [one.path for one in outcome.dispatch] == ["a"]
    assert step.output == {"approved": True, "by": "ana", "comment": ""}


def test_a_rejected_approval_fails_the_run() -> None:
    run = make([{"id": "ok", "approve": {"ask": "go?"}}, {"id": "a", **NOOP}])
    start(run)
    step = run.steps["ok"]
    apply(run, lambda m: m.decide_approval(step, approve=False, by="ana", comment="no"))
    assert run.status == "failed"
    assert run.error is not None
    assert run.error["type"] == "rejected"


def test_cancel_reaches_below_a_control_step() -> None:
    body = [{"id": "w", "wait": "1h"}]
    run = make([{"id": "m", "parallel": {}, "do": body}, {"id": "n", "set": 1}])
    start(run)
    apply(run, lambda m: m.cancel("stop"))
    assert run.status == "cancelled"
    assert run.steps["n"].status == "cancelled"


def approve(run: RunState, path: str = "ok") -> Outcome:
    return apply(run, lambda m: m.decide_approval(run.steps[path], approve=True, by="ann", comment="") and None)


def test_an_approval_is_asked_again_when_the_gated_input_came_after_it() -> None:
    gated = {"id": "deploy", "tool": "builtin.noop", "args": {"build": "${steps.build.output}"}}
    run = make([{"id": "ok", "approve": {"ask": "Deploy?", "gates": ["deploy"]}}, {"id": "build", **NOOP}, gated])
    start(run)
    approve(run)
    build = begin(run, "build")
    outcome = apply(run, lambda m: m.complete(build, {"digest": "d1"}))
    assert outcome.dispatch == []
    assert [event["type"] for event in outcome.events][-2:] == ["approval.stale", "approval.requested"]
    assert (run.steps["ok"].status, run.steps["deploy"].status) == ("waiting", "pending")
    assert [step.path for step in approve(run).dispatch] == ["deploy"]


def test_a_refused_approval_stops_its_gate_even_where_the_workflow_goes_on() -> None:
    asked = {"id": "ok", "approve": {"ask": "Deploy?"}, "on_error": "continue"}
    run = make(
        [asked, {"id": "deploy", **NOOP, "on_error": "continue"}, {"id": "after", "set": "${steps.deploy.error.type}"}]
    )
    start(run)
    outcome = apply(run, lambda m: m.decide_approval(run.steps["ok"], approve=False, by="ann", comment="no") and None)
    assert outcome.dispatch == []
    assert run.output == {"ok": None, "deploy": None, "after": "rejected"}


def test_a_gated_step_may_read_what_its_approval_answered() -> None:
    run = make([{"id": "ok", "approve": {"ask": "Deploy?"}}, {"id": "by", "set": "${steps.ok.output.by}"}])
    start(run)
    approve(run)
    assert run.output["by"] == "ann"
