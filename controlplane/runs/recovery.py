"""Open runs from the database into memory, exactly as they were committed.

A step that was running stays with its node under its fence; one that was only ready is found ready again, because
readiness follows from what is recorded.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from sqlmodel import Session, col, select

from controlplane.runs import labels
from controlplane.runs.agent_turns import (
    calls_frame,
    final_value,
    hear_model,
    hear_repair,
    hear_results,
    model_frame,
)
from controlplane.runs.control import map_frame
from controlplane.runs.state import RUN_TERMINAL, CallState, Frame, RunState, StepState
from controlplane.tables import CallRow, EventRow, PrincipalRow, RunDefinitionRow, RunRow, StepRow
from controlplane.workflows.graph import compile_workflow
from controlplane.workflows.spec import Verb

_INDEX = re.compile(r"\[(\d+)\]/")


def open_runs(session: Session, tenant: str) -> list[str]:
    """Ids of runs that are not at their end, oldest first."""
    query = select(RunRow.id).where(RunRow.tenant == tenant, col(RunRow.status).not_in(RUN_TERMINAL))
    return list(session.exec(query.order_by(col(RunRow.created_ns))).all())


def load(session: Session, tenant: str, run_id: str) -> tuple[RunState, dict[str, str]] | None:
    """The run and the digests of its tools, or ``None`` if it is not open."""
    head = session.exec(select(RunRow).where(RunRow.tenant == tenant, RunRow.id == run_id)).first()
    if head is None or head.status in RUN_TERMINAL:
        return None
    key = (tenant, head.partition, run_id)
    fixed = session.get(RunDefinitionRow, key)
    principal = session.get(PrincipalRow, (tenant, head.principal))
    if fixed is None or principal is None:
        raise LookupError(f"run {run_id} has no definition or no principal")
    run = RunState(
        tenant=tenant,
        id=run_id,
        workflow=compile_workflow(json.loads(fixed.definition)),
        input=json.loads(fixed.input),
        principal={"id": principal.id, "kind": principal.kind, "scopes": json.loads(principal.scopes)},
        created_ns=head.created_ns,
    )
    run.seq, run.status = head.seq, head.status
    run.decisions, run.denied, run.labels = head.decisions, head.denied, json.loads(head.labels)
    if run.status == "cancelling":
        asked = select(EventRow.data).where(
            EventRow.tenant == tenant, EventRow.run == run_id, EventRow.type == "run.cancelling"
        )
        run.cancel_reason = json.loads(session.exec(asked).first() or "{}").get("reason")
    newest = select(EventRow.seq).where(EventRow.tenant == tenant, EventRow.run == run_id)
    run.events = session.exec(newest.order_by(col(EventRow.seq).desc()).limit(1)).first() or 0
    rows = session.exec(select(StepRow).where(StepRow.tenant == tenant, StepRow.run == run_id)).all()
    run.output_bytes = sum(len(row.output or "") for row in rows)
    _Rebuild(run, {row.path: row for row in rows}).frame(run.root)
    for call in session.exec(select(CallRow).where(CallRow.tenant == tenant, CallRow.run == run_id)).all():
        step = run.steps.get(call.path)
        if step is not None:
            step.calls[call.key] = _call(call)
    return run, json.loads(fixed.tools)


class _Rebuild:
    def __init__(self, run: RunState, rows: dict[str, StepRow]) -> None:
        self.run = run
        self.rows = rows
        self.prefixes = {path[: match.end()] for path in rows for match in _INDEX.finditer(path)}

    def frame(self, frame: Frame, *, cancelled: bool = False) -> None:
        """Fill a frame from rows, in order, so that each step sees the scope it had."""
        frame.cancelled = cancelled or self.run.status == "cancelling"
        for spec in frame.block.steps:
            step = StepState(path=frame.prefix + spec.id, spec=spec, frame=frame)
            frame.steps[spec.id] = step
            self.run.steps[step.path] = step
        frame.unfinished = len(frame.steps)
        for step in frame.steps.values():
            row = self.rows.get(step.path)
            if row is not None:
                _restore(step, row)
            if step.terminal:
                frame.unfinished -= 1
                frame.scope = frame.scope.with_step(step.spec.id, step.output, step.error, step.status)
                if step.status == "failed" and step.spec.on_error != "continue" and frame.failure is None:
                    frame.failure = {**(step.error or {}), "path": (step.error or {}).get("path", step.path)}
                    frame.cancelled = True
        for step in list(frame.steps.values()):
            if row_is_open_control(step):
                self._below(step, cancelled=frame.cancelled)

    def _below(self, step: StepState, *, cancelled: bool) -> None:
        spec = step.spec
        if spec.verb is Verb.MAP:
            self._map(step, cancelled=cancelled or "failed" in step.detail)
            return
        if spec.verb is Verb.AGENT:
            self._agent(step, cancelled=cancelled or "stopping" in step.detail)
            return
        block = spec.otherwise if step.detail.get("branch") == "else" else spec.body
        if block is None:
            return
        frame = Frame(block=block, prefix=f"{step.path}/", owner=step, index=-1, scope=step.frame.scope)
        step.frames[-1] = frame
        self.frame(frame, cancelled=cancelled)

    def _agent(self, step: StepState, *, cancelled: bool) -> None:
        """Every turn in order; the last one has what is still open."""
        for turn in range(1, step.detail["turn"] + 1):
            frame = model_frame(step, turn)
            if self._is_open(step, frame, cancelled=cancelled):
                return
            hear_model(step, turn, frame.steps["model"].output)
            if not step.said["calls"]:
                hear_repair(step, final_value(step)[1])
                continue
            calls = calls_frame(step, turn)
            if calls is not None and self._is_open(step, calls, cancelled=cancelled):
                return
            hear_results(step, turn, {} if calls is None else calls.steps)

    def _is_open(self, step: StepState, frame: Frame, *, cancelled: bool) -> bool:
        self.frame(frame, cancelled=cancelled)
        if frame.unfinished:
            step.frames[frame.index] = frame
            return True
        for below in frame.steps.values():
            self.run.steps.pop(below.path, None)
        step.labels = labels.join(step.labels, *(below.labels for below in frame.steps.values()))
        return False

    def _map(self, step: StepState, *, cancelled: bool) -> None:
        step.items = step.spec.fields["over"].render(step.frame.scope)
        step.results = [None] * len(step.items)
        width = 1 if step.spec.spec.map is None else step.spec.spec.map.concurrency
        for index in range(len(step.items)):
            prefix = f"{step.path}[{index}]/"
            begun = prefix in self.prefixes
            full = len(step.frames) >= width or index > step.next_item
            if not begun and (full or cancelled):
                break
            frame = map_frame(step, index)
            self.frame(frame, cancelled=cancelled)
            step.next_item = index + 1
            if frame.unfinished:
                step.frames[index] = frame
                continue
            for below in frame.steps.values():
                self.run.steps.pop(below.path, None)
            step.labels = labels.join(step.labels, *(below.labels for below in frame.steps.values()))
            if frame.failure is not None:
                step.failed_items += 1
                step.results[index] = {"error": frame.failure}
            elif not frame.cancelled:
                step.results[index] = frame.outputs()


def row_is_open_control(step: StepState) -> bool:
    """Whether there may be frames below that still matter."""
    return step.status == "running" and step.spec.verb in (Verb.IF, Verb.MAP, Verb.PARALLEL, Verb.AGENT)


def _restore(step: StepState, row: StepRow) -> None:
    def value(text: str | None) -> Any:
        return None if text is None else json.loads(text)

    step.status, step.number, step.failures = row.status, row.number, row.failures
    step.attempt, step.fence, step.node, step.tier = row.attempt, row.fence, row.node, row.tier
    step.decision, step.due_ns = row.decision, row.due_ns
    step.output_text = row.output
    step.output, step.error, step.detail = value(row.output), value(row.error), value(row.detail) or {}
    step.report, step.labels = value(row.report), json.loads(row.labels)
    step.placement = None if row.placement is None else msgspec.Raw(row.placement)
    step.started_ns, step.finished_ns = row.started_ns, row.finished_ns
    step.cancelling = row.status == "running" and "cancelling" in step.detail


def _call(row: CallRow) -> CallState:
    return CallState(
        key=row.key,
        tool=row.tool,
        tool_digest=row.tool_digest,
        effect=row.effect,
        args=row.args,
        attempt=row.attempt,
        number=row.number,
        state=row.state,
        decision=row.decision,
        ok=row.ok,
        result=None if row.result is None else json.loads(row.result),
    )
