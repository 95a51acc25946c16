"""What an event does to a run: state and event in, writes and effects out. No clock, no I/O, no framework.

    machine = Machine(run, now_ns)      one per event
    machine.start() | report(…) | timer(…) | cancel(…) | …
    outcome = machine.outcome()         writes for one commit, and what to do once it is durable

Steps run top to bottom or by ``needs``. A failed step ends its frame unless ``on_error`` or ``tolerate`` says
otherwise; its running siblings are cancelled and waited for, so nothing outlives the step that started it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from controlplane.runs import labels
from controlplane.runs.agent_verbs import AgentVerbs
from controlplane.runs.bounds import TooMuch, bounded
from controlplane.runs.state import Frame, RunState, StepState, error_value, step_write
from controlplane.store import Write, encoded, insert
from controlplane.tables import EventRow, RunRow
from controlplane.workflows.expressions import ExpressionFailed
from controlplane.workflows.spec import WORK, Verb

SECOND = 1_000_000_000


class Cancel(NamedTuple):
    """An attempt that must end: on its node, or with ``node`` empty here, where models are called."""

    node: str
    attempt: str
    fence: int
    reason: str


class Timer(NamedTuple):
    """Wake ``path`` at ``due_ns``."""

    due_ns: int
    path: str


@dataclass(kw_only=True)
class Outcome:
    """One transition: commit ``writes`` together, then act on the rest."""

    writes: list[Write]
    events: list[dict[str, Any]]
    dispatch: list[StepState]
    cancels: list[Cancel]
    timers: list[Timer]
    finished: bool


@dataclass
class Machine(AgentVerbs):
    """The mutable workings of one transition."""

    run: RunState
    now_ns: int
    dirty: dict[str, StepState] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    dispatch: list[StepState] = field(default_factory=list)
    cancels: list[Cancel] = field(default_factory=list)
    timers: list[Timer] = field(default_factory=list)
    more: list[Write] = field(default_factory=list)
    _ready: deque[StepState] = field(default_factory=deque)

    # -- events of a run ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or after a restart go on with whatever is ready."""
        if self.run.status == "pending":
            self._status("running")
            self.open_frame(self.run.root)
        self.settle()

    def cancel(self, reason: str) -> None:
        """End every step; the run is cancelled when the last attempt has ended. Harmless when repeated."""
        if self.run.terminal or self.run.status == "cancelling":
            return
        self.run.cancel_reason = reason
        self._status("cancelling", {"reason": reason})
        self.cancel_frame(self.run.root, reason)
        self.settle()

    def complete(self, step: StepState, output: Any) -> None:
        """A step's success, from whoever did its work; an output that is too large or too deep is a failure."""
        try:
            text = bounded(output, self.run.output_bytes)
        except TooMuch as much:
            self.fail(step, error_value(much.error_type, str(much)))
            return
        step.output_text = text
        self.run.output_bytes += len(text or "")
        self._end(step, "completed", output=output)

    def fail(self, step: StepState, error: dict[str, Any], *, guest: bool = True) -> None:
        """A step's failure. ``guest`` failures count against ``retry.max``; the platform's are tried again as they are.

        A denial is never tried again: the answer would be the same.
        """
        if step.cancelling:
            self._end(step, "cancelled", error=error_value("cancelled", error["message"]))
            return
        retry = step.spec.retry
        if guest:
            step.failures += 1
        error = {**error, "attempt": step.number or None, "node": step.node}
        wanted = retry is not None and step.failures <= retry.max and (not retry.on or error["type"] in retry.on)
        error["retryable"] = error["retryable"] or wanted
        if guest and wanted and retry is not None and error["type"] != "policy_denied":
            delay = min(retry.backoff_max_seconds, retry.backoff_min_seconds * 2.0 ** (step.failures - 1))
            self._rest(step, delay, "step.retrying", {"error": error, "in_seconds": delay, "failures": step.failures})
            return
        self._end(step, "failed", error=error)

    def lost(self, step: StepState, kind: str, message: str) -> None:
        """The platform failed this attempt: dispatch again, burning none of the step's retries."""
        if step.cancelling:
            self._end(step, "cancelled", error=error_value("cancelled", message))
            return
        error = error_value(kind, message, attempt=step.number, node=step.node, retryable=True)
        self.event("step.retrying", step, {"error": error, "in_seconds": 0, "failures": step.failures})
        step.status = "ready"
        step.attempt = step.node = step.tier = None
        self.touch(step)
        self.dispatch.append(step)

    def delay(self, step: StepState, seconds: float) -> None:
        """Hold a step back that the platform failed, instead of trying at once."""
        self.dispatch.remove(step)
        step.status = "waiting"
        step.detail["resting"] = True
        self.wake(step, self.now_ns + int(seconds * SECOND))

    def wait_for(self, step: StepState, reasons: list[dict[str, Any]], placement: msgspec.Raw | None) -> None:
        """The step cannot go on now and says why; ``dispatch`` tries it again."""
        known = [one["code"] for one in step.detail.get("waiting", ())]
        if step.status == "waiting" and known == [one["code"] for one in reasons]:
            return
        step.status = "waiting"
        step.detail["waiting"] = reasons
        step.placement = placement
        self.touch(step)
        self.event("step.waiting", step, {"reasons": reasons})

    def assigned(self, step: StepState, *, node: str, node_name: str, attempt: str, tier: str | None) -> None:
        """The step has a node. The fence rises with every assignment."""
        step.status = "running"
        step.number += 1
        step.fence += 1
        step.attempt, step.node, step.tier = attempt, node, tier
        step.detail.pop("waiting", None)
        step.started_ns = step.started_ns or self.now_ns
        self.touch(step)
        self.event("step.assigned", step, {"node": node, "node_name": node_name, "tier": tier, "number": step.number})

    def timer(self, step: StepState) -> None:
        """``due_ns`` has come: a wait is over, a retry may start, an approval or a step has run out of time."""
        if step.terminal or step.due_ns is None or step.due_ns > self.now_ns:
            return
        step.due_ns = None
        if step.detail.pop("resting", None):
            step.status = "ready"
            self.touch(step)
            self.dispatch.append(step)
        elif step.spec.verb is Verb.WAIT:
            self.complete(step, None)
        elif step.spec.verb is Verb.APPROVE:
            self.fail(step, error_value("rejected", "nobody decided before the approval expired"))
        elif step.spec.verb is Verb.AGENT:
            self.agent_overdue(step)
        self.settle()

    # -- walking ---------------------------------------------------------------------------------------------------

    def open_frame(self, frame: Frame) -> None:
        """Make the frame's steps and put the ones without open needs in line."""
        for spec in frame.block.steps:
            path = frame.prefix + spec.id
            step = StepState(path=path, spec=spec, frame=frame)
            frame.steps[spec.id] = step
            self.run.steps[path] = step
        frame.unfinished = len(frame.steps)
        self._ready.extend(step for step in frame.steps.values() if self._free(step))

    def settle(self) -> None:
        """Run everything that can be decided without leaving the control plane, then judge the run."""
        while self._ready:
            step = self._ready.popleft()
            if step.status == "pending" and step.frame.failure is None and not step.frame.cancelled:
                self._begin(step)
        if self.run.root.unfinished == 0 and not self.run.terminal:
            self._finish_run()

    def resume(self, step: StepState) -> None:
        """After a restart: put a pending step whose needs are met in line again."""
        if step.status == "pending" and self._free(step):
            self._ready.append(step)

    def _free(self, step: StepState) -> bool:
        return all(step.frame.steps[need].terminal for need in step.spec.needs)

    def _begin(self, step: StepState) -> None:
        spec = step.spec
        try:
            if spec.when is not None:
                verdict = spec.when.render(step.frame.scope)
                if not isinstance(verdict, bool):
                    raise ExpressionFailed(f"`when` gave {type(verdict).__name__}, not a bool", f"{spec.pointer}/when")
                if not verdict:
                    self._end(step, "skipped")
                    return
            if not self.approved(step):
                return
            step.started_ns = self.now_ns
            if spec.verb in WORK:
                step.status = "ready"
                self.dispatch.append(step)
            else:
                self.begin_control(step)
        except ExpressionFailed as failed:
            self.fail(step, error_value("schema", str(failed)))

    def _end(self, step: StepState, status: str, *, output: Any = None, error: dict[str, Any] | None = None) -> None:
        if step.terminal:
            return
        step.status, step.output, step.error, step.finished_ns = status, output, error, self.now_ns
        step.labels = labels.join(labels.of_step(step), step.labels)
        step.due_ns = None
        step.cancelling = False
        self.touch(step)
        data: dict[str, Any] = {"error": error} if error else {}
        if step.started_ns is not None and status == "completed":
            data["seconds"] = round((self.now_ns - step.started_ns) / SECOND, 6)
        self.event(f"step.{status}", step, data)
        frame = step.frame
        frame.unfinished -= 1
        frame.scope = frame.scope.with_step(step.spec.id, output, error, status)
        for below in list(step.frames.values()):
            self.forget(below)
        if status == "failed" and step.spec.on_error != "continue" and frame.failure is None:
            frame.failure = {**(error or {}), "path": (error or {}).get("path", step.path)}
            self.cancel_frame(frame, f"{step.path} failed")
        if frame.failure is None and not frame.cancelled:
            after = (frame.steps[name] for name in (*frame.block.dependents[step.spec.id], *step.spec.gates))
            self._ready.extend(s for s in after if s.status == "pending" and self._free(s))
        if frame.unfinished == 0 and frame.owner is not None:
            self.frame_done(frame)

    def forget(self, frame: Frame) -> None:
        """Steps of a finished frame are in the database; their parent's output is what later steps see."""
        if frame.owner is not None:
            frame.owner.labels = labels.join(frame.owner.labels, *(step.labels for step in frame.steps.values()))
        for step in frame.steps.values():
            self.run.steps.pop(step.path, None)
        if frame.owner is not None:
            frame.owner.frames.pop(frame.index, None)

    def cancel_frame(self, frame: Frame, reason: str) -> None:
        """Cancel what is live below; attempts on nodes are told and waited for."""
        frame.cancelled = True
        for step in list(frame.steps.values()):
            if step.terminal:
                continue
            for below in list(step.frames.values()):
                self.cancel_frame(below, reason)
            if step.terminal:
                continue
            if step.status == "running" and step.attempt is not None:
                self._cancel_attempt(step, reason)
            elif not step.frames:
                self._end(step, "cancelled", error=error_value("cancelled", reason))

    def _cancel_attempt(self, step: StepState, reason: str) -> None:
        if not step.cancelling:
            step.cancelling = True
            step.detail["cancelling"] = reason
            self.touch(step)
            self.cancels.append(Cancel(step.node or "", step.attempt or "", step.fence, reason))

    def _rest(self, step: StepState, seconds: float, kind: str, data: dict[str, Any]) -> None:
        step.status = "waiting"
        step.attempt = step.node = step.tier = None
        step.detail["resting"] = True
        self.wake(step, self.now_ns + int(seconds * SECOND))
        self.event(kind, step, data)

    # -- the run itself ----------------------------------------------------------------------------------------------

    def _finish_run(self) -> None:
        run = self.run
        if run.status == "cancelling":
            run.error = error_value("cancelled", run.cancel_reason or "cancelled")
            self._status("cancelled", {"reason": run.cancel_reason})
        elif run.root.failure is not None:
            run.error = run.root.failure
            self._status("failed", {"error": run.error})
        else:
            try:
                template = run.workflow.output
                output = run.root.outputs() if template is None else template.render(run.root.scope)
                bounded(output)
                run.output = output
                self._status("completed")
            except (ExpressionFailed, TooMuch) as failed:
                run.error = error_value("schema", str(failed))
                self._status("failed", {"error": run.error})

    def _status(self, status: str, data: dict[str, Any] | None = None) -> None:
        self.run.status = status
        if status in ("completed", "failed", "cancelled"):
            self.run.finished_ns = self.now_ns
        self.event(f"run.{status}", None, data or {})

    def wake(self, step: StepState, due_ns: int) -> None:
        """Call ``timer`` for the step at that time."""
        step.due_ns = due_ns
        self.timers.append(Timer(due_ns, step.path))
        self.touch(step)

    def close_cancelled(self, step: StepState, message: str) -> None:
        """A control step whose frames were all cancelled."""
        self._end(step, "cancelled", error=error_value("cancelled", message))

    def touch(self, step: StepState) -> None:
        """The step's row is part of this transition."""
        self.dirty[step.path] = step

    def event(self, kind: str, step: StepState | None, data: dict[str, Any]) -> None:
        """A line of the journal, numbered without gaps."""
        self.run.events += 1
        path = "" if step is None else step.path
        self.events.append({"seq": self.run.events, "type": kind, "path": path, "at_ns": self.now_ns, "data": data})

    def outcome(self) -> Outcome:
        """Everything decided, as one transition conditional on the run's ``seq``. Call once, last."""
        self.settle()
        run = self.run
        writes = [step_write(run, step) for step in self.dirty.values()]
        writes += [event_write(run, event) for event in self.events]
        writes += self.more
        if writes:
            writes.append(head_write(run, self.now_ns))
        return Outcome(
            writes=writes,
            events=self.events,
            dispatch=[step for step in self.dispatch if step.status in ("ready", "waiting")],
            cancels=self.cancels,
            timers=self.timers,
            finished=run.terminal,
        )


def event_write(run: RunState, event: dict[str, Any]) -> Write:
    """One event's row."""
    row = {"tenant": run.tenant, "partition": run.partition, "run": run.id, "v": 1}
    return insert(EventRow, {**row, **event, "data": encoded(event["data"])})


_HEAD = (
    f'UPDATE "{RunRow.__tablename__}" SET seq=?, status=?, output=?, error=?, decisions=?, denied=?, updated_ns=?, '  # noqa: S608
    "finished_ns=? WHERE tenant=? AND partition=? AND id=? AND seq=?"
)


def head_write(run: RunState, now_ns: int) -> Write:
    """The run's row, one ``seq`` on; it does not apply, and fails the transition, if another was there first."""
    run.seq += 1
    output = None if run.status != "completed" else encoded(run.output)
    error = None if run.error is None else encoded(run.error)
    row = (run.seq, run.status, output, error, run.decisions, run.denied, now_ns, run.finished_ns)
    return Write(_HEAD, (*row, run.tenant, run.partition, run.id, run.seq - 1))
