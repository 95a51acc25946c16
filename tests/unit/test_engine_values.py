"""What transitions keep of values: labels that follow data, approvals that freeze it, shares that count once."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.runs.control import gate_digest
from controlplane.runs.reports import PLATFORM_FAILURES_MOST, platform_failed
from controlplane.runs.state import RunState, error_value
from controlplane.runs.transitions import Machine, Outcome
from controlplane.workflows.graph import compile_workflow
from dataplane.protocol import Report

NOOP = {"tool": "builtin.noop"}
UNTRUSTED = {"integrity": "untrusted", "sources": ["web.fetch"]}


def make(steps: list[dict[str, Any]]) -> RunState:
    workflow = compile_workflow({"stockade": "1", "name": "t", "steps": steps})
    who = {"id": "key_1", "kind": "person", "scopes": []}
    return RunState(tenant="default", id="run_1", workflow=workflow, input={"n": 3}, principal=who, created_ns=0)


def apply(run: RunState, act: Any) -> Outcome:
    machine = Machine(run=run, now_ns=0)
    act(machine)
    return machine.outcome()


def finish(run: RunState, path: str, output: Any = None, labels: dict[str, Any] | None = None) -> Outcome:
    step = run.steps[path]
    apply(run, lambda m: m.assigned(step, node="n", node_name="n", attempt=f"att_{path}", tier=None))
    step.labels = labels or {}
    return apply(run, lambda m: m.complete(step, output))


@pytest.mark.parametrize("failed", ["m[0]/a", "m[0]/b"])
def test_a_failed_item_of_several_steps_counts_once(failed: str) -> None:
    loop = {"over": [1, 2, 3, 4], "concurrency": 4, "tolerate": 0.25}
    body = [{"id": "a", **NOOP}, {"id": "b", **NOOP}]
    run = make([{"id": "m", "map": loop, "do": body}])
    apply(run, lambda m: m.start())
    for index in range(4):
        for name in ("a", "b"):
            path = f"m[{index}]/{name}"
            if path == failed:
                apply(run, lambda m: m.fail(run.steps[failed], error_value("tool", "no")))
                break
            finish(run, path)
    assert run.status == "completed"


@pytest.mark.parametrize(
    "gated",
    [
        {"id": "go", "parallel": {}, "do": [{"id": "x", **NOOP, "args": {"v": "${steps.late.output}"}}]},
        {"id": "go", "if": "${input.n > 1}", "do": [{"id": "x", **NOOP, "args": {"v": "${steps.late.output}"}}]},
        {"id": "go", "map": {"over": [1]}, "do": [{"id": "x", **NOOP, "args": {"v": "${steps.late.output}"}}]},
        {"id": "go", **NOOP, "key": "${steps.late.output}"},
    ],
)
def test_an_approval_freezes_what_steps_below_its_gate_read(gated: dict[str, Any]) -> None:
    run = make([{"id": "ok", "approve": {"ask": "?", "gates": ["go"]}}, {"id": "late", **NOOP}, gated])
    apply(run, lambda m: m.start())
    before = gate_digest(run.root, "go")
    apply(run, lambda m: m.decide_approval(run.steps["ok"], approve=True, by="ann", comment=""))
    outcome = finish(run, "late", "changed")
    assert gate_digest(run.root, "go") != before
    assert outcome.dispatch == []
    assert run.steps["ok"].status == "waiting"


@pytest.mark.parametrize(
    "around",
    [
        {"id": "c", "parallel": {}, "do": [{"id": "x", **NOOP}]},
        {"id": "c", "if": "${input.n > 1}", "do": [{"id": "x", **NOOP}]},
        {"id": "c", "map": {"over": [1, 2], "concurrency": 1}, "do": [{"id": "x", **NOOP}]},
    ],
)
def test_labels_pass_through_control_steps_and_set(around: dict[str, Any]) -> None:
    run = make([around, {"id": "s", "set": "${steps.c.output}"}, {"id": "last", **NOOP}])
    apply(run, lambda m: m.start())
    seen = dict(run.steps)
    for path in ("c/x",) if "map" not in around else ("c[0]/x", "c[1]/x"):
        finish(run, path, "from the web", UNTRUSTED if path != "c[1]/x" else None)
    seen |= run.steps
    for step in (seen["c"], seen["s"]):
        assert step.labels["integrity"] == "untrusted"
        assert "web.fetch" in step.labels["sources"]


def test_the_error_of_a_failed_step_has_its_labels() -> None:
    run = make([{"id": "a", **NOOP, "on_error": "continue"}, {"id": "s", "set": "${steps.a.error.message}"}])
    apply(run, lambda m: m.start())
    step = run.steps["a"]
    step.labels = UNTRUSTED
    apply(run, lambda m: m.fail(step, error_value("tool", "said by the guest")))
    assert run.steps["s"].labels == UNTRUSTED


@pytest.mark.parametrize("until", ["9999-12-31T23:59:59-01:00", "9999-12-31T00:00:00Z", "0001-01-01T00:00:00+14:00"])
def test_an_instant_at_the_end_of_time_fails_its_step_or_passes(until: str) -> None:
    run = make([{"id": "w", "wait": {"until": until}}])
    outcome = apply(run, lambda m: m.start())
    assert run.status == "failed" or all(abs(timer.due_ns) < 2**63 for timer in outcome.timers)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("output", "kind"), [(nested(129), "schema"), (nested(5_000), "schema"), ("x" * (16 * 1024 * 1024), "schema")]
)
def test_an_output_too_deep_or_too_large_fails_its_step(output: Any, kind: str) -> None:
    run = make([{"id": "a", **NOOP}])
    apply(run, lambda m: m.start())
    finish(run, "a", output)
    assert run.error is not None
    assert run.error["type"] == kind


def test_outputs_that_double_end_before_the_disk_does() -> None:
    steps = [{"id": "s0", "set": "x" * 1024}]
    steps += [{"id": f"s{i}", "set": f"${{steps.s{i - 1}.output + steps.s{i - 1}.output}}"} for i in range(1, 40)]
    run = make(steps)
    apply(run, lambda m: m.start())
    assert run.status == "failed"
    assert run.output_bytes <= 32 * 1024 * 1024


def test_a_run_may_not_gather_more_than_its_outputs_may_hold() -> None:
    run = make([{"id": "a", **NOOP}])
    apply(run, lambda m: m.start())
    run.output_bytes = 256 * 1024 * 1024
    finish(run, "a", 1)
    assert run.error is not None
    assert run.error["type"] == "budget"


def test_what_the_platform_keeps_failing_ends_some_day_and_burns_no_retry() -> None:
    run = make([{"id": "a", **NOOP, "retry": {"max": 5}}])
    apply(run, lambda m: m.start())
    step = run.steps["a"]
    for number in range(1, PLATFORM_FAILURES_MOST + 1):
        attempt = f"att_{number}"
        apply(run, lambda m, attempt=attempt: m.assigned(step, node="n", node_name="n", attempt=attempt, tier=None))
        report = Report(attempt=attempt, fence=step.fence, platform_error="driver_failed", message="no disk")
        apply(run, lambda m, report=report: platform_failed(m, step, report))
        if step.due_ns is not None:
            due = step.due_ns
            machine = Machine(run=run, now_ns=due)
            machine.timer(step)
            machine.outcome()
    assert run.status == "failed"
    assert step.failures == 0
    assert run.error is not None
    assert "no disk" in run.error["message"]
