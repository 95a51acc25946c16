"""The verbs that never leave the control plane: set, if, map, parallel, approve, wait; and what an agent decides.

``ControlVerbs`` is the part of ``transitions.Machine`` that begins them and gathers what their frames gave.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from datetime import datetime
from typing import Any

from controlplane.runs.state import Frame, RunState, StepState, error_value
from controlplane.store import canonical
from controlplane.workflows.expressions import ExpressionFailed
from controlplane.workflows.graph import Block, CompiledStep
from controlplane.workflows.quantities import parse_duration
from controlplane.workflows.scope import STEP_FIELDS, UnknownName
from controlplane.workflows.spec import Verb

SECOND = 1_000_000_000
WAIT_MOST_NS = 3_660 * 86_400 * SECOND


class ControlVerbs(ABC):
    """Begins control steps and closes their frames; the walking is the machine's."""

    run: RunState
    now_ns: int

    @abstractmethod
    def open_frame(self, frame: Frame) -> None: ...

    @abstractmethod
    def complete(self, step: StepState, output: Any) -> None: ...

    @abstractmethod
    def fail(self, step: StepState, error: dict[str, Any], *, guest: bool = True) -> None: ...

    @abstractmethod
    def touch(self, step: StepState) -> None: ...

    @abstractmethod
    def event(self, kind: str, step: StepState | None, data: dict[str, Any]) -> None: ...

    @abstractmethod
    def cancel_frame(self, frame: Frame, reason: str) -> None: ...

    @abstractmethod
    def forget(self, frame: Frame) -> None: ...

    @abstractmethod
    def wake(self, step: StepState, due_ns: int) -> None: ...

    @abstractmethod
    def begin_agent(self, step: StepState) -> None: ...

    @abstractmethod
    def turn_frame_done(self, owner: StepState, frame: Frame) -> None: ...

    @abstractmethod
    def close_cancelled(self, step: StepState, message: str) -> None: ...

    def begin_control(self, step: StepState) -> None:
        """Start a control step. Raises ``ExpressionFailed``."""
        spec, scope = step.spec, step.frame.scope
        step.status = "running"
        if spec.verb is Verb.SET:
            self.complete(step, spec.fields["value"].render(scope))
        elif spec.verb is Verb.IF:
            verdict = spec.fields["cond"].render(scope)
            if not isinstance(verdict, bool):
                raise ExpressionFailed(f"`if` gave {type(verdict).__name__}, not a bool", f"{spec.pointer}/if")
            block = spec.body if verdict else spec.otherwise
            if block is None:
                self.complete(step, {})
            else:
                step.detail["branch"] = "do" if verdict else "else"
                self._only_frame(step, block)
        elif spec.verb is Verb.PARALLEL:
            self._only_frame(step, spec.body)
        elif spec.verb is Verb.MAP:
            self._begin_map(step)
        elif spec.verb is Verb.WAIT:
            self._begin_wait(step)
        elif spec.verb is Verb.AGENT:
            self.begin_agent(step)
        else:
            self._begin_approval(step)

    def _only_frame(self, step: StepState, block: Block | None) -> None:
        if block is None:
            self.complete(step, {})
            return
        frame = Frame(block=block, prefix=f"{step.path}/", owner=step, index=-1, scope=step.frame.scope)
        step.frames[-1] = frame
        self.touch(step)
        self.open_frame(frame)

    def _begin_map(self, step: StepState) -> None:
        items = step.spec.fields["over"].render(step.frame.scope)
        if not isinstance(items, list):
            raise ExpressionFailed(f"`over` gave {type(items).__name__}, not a list", f"{step.spec.pointer}/map/over")
        step.items, step.results = items, [None] * len(items)
        step.detail["items"] = len(items)
        self.touch(step)
        if not items:
            self.complete(step, [])
        else:
            self.fill_map(step)

    def fill_map(self, step: StepState) -> None:
        """Open frames up to the map's concurrency."""
        settings = step.spec.spec.map
        width = 1 if settings is None else settings.concurrency
        while step.next_item < len(step.items) and len(step.frames) < width and "failed" not in step.detail:
            index = step.next_item
            step.next_item += 1
            frame = map_frame(step, index)
            step.frames[index] = frame
            self.open_frame(frame)

    def frame_done(self, frame: Frame) -> None:
        """All steps of a frame are at their end: pass its value or its failure up."""
        owner = frame.owner
        if owner is None or owner.terminal:
            return
        if owner.spec.verb is Verb.MAP:
            self._map_frame_done(owner, frame)
        elif owner.spec.verb is Verb.AGENT:
            self.turn_frame_done(owner, frame)
        elif frame.failure is not None:
            self.fail(owner, caused(frame.failure))
        elif frame.cancelled:
            self.close_cancelled(owner, "cancelled")
        else:
            self.complete(owner, frame.outputs())

    def _map_frame_done(self, owner: StepState, frame: Frame) -> None:
        if owner.frames.get(frame.index) is not frame:
            return  # counted already: cancelling its last sibling ended the frame before the failing step did
        settings = owner.spec.spec.map
        tolerate = 0.0 if settings is None else settings.tolerate
        if frame.failure is not None:
            owner.failed_items += 1
            owner.results[frame.index] = {"error": frame.failure}
            if owner.failed_items > tolerate * len(owner.items) and "failed" not in owner.detail:
                owner.detail["failed"] = frame.failure
                self.touch(owner)
                for other in list(owner.frames.values()):
                    if other is not frame and other.unfinished:
                        self.cancel_frame(other, f"{owner.path}[{frame.index}] failed")
        elif not frame.cancelled:
            owner.results[frame.index] = frame.outputs()
        self.forget(frame)
        stopping = frame.cancelled and frame.failure is None
        if owner.terminal:
            return
        if "failed" not in owner.detail and not stopping:
            self.fill_map(owner)
        if owner.frames:
            return
        if "failed" in owner.detail:
            self.fail(owner, caused(owner.detail["failed"]))
        elif stopping:
            self.close_cancelled(owner, "cancelled")
        elif owner.next_item == len(owner.items):
            self.complete(owner, owner.results)

    def _begin_wait(self, step: StepState) -> None:
        fields, scope = step.spec.fields, step.frame.scope
        step.status = "waiting"
        try:
            if "until" in fields:
                instant = datetime.fromisoformat(str(fields["until"].render(scope)))
                if instant.tzinfo is None:
                    raise ValueError("an instant needs an offset, for example 2026-01-31T12:00:00Z")
                due = int(instant.timestamp() * SECOND)
            else:
                due = self.now_ns + int(parse_duration(fields["duration"].render(scope)) * SECOND)
        except (ValueError, OverflowError) as wrong:
            raise ExpressionFailed(str(wrong), f"{step.spec.pointer}/wait") from wrong
        if due - self.now_ns > WAIT_MOST_NS:
            raise ExpressionFailed("a wait ends within ten years", f"{step.spec.pointer}/wait")
        self.wake(step, max(due, self.now_ns))

    def _begin_approval(self, step: StepState) -> None:
        settings = step.spec.spec.approve
        fields, scope = step.spec.fields, step.frame.scope
        step.status = "waiting"
        step.detail["ask"] = str(fields["ask"].render(scope))
        step.detail["show"] = fields["show"].render(scope) if "show" in fields else None
        step.detail["by"] = [] if settings is None else settings.by
        step.detail["gates"] = {gate: gate_digest(step.frame, gate) for gate in step.spec.gates}
        if settings is not None and settings.expires is not None:
            self.wake(step, self.now_ns + int(settings.expires * SECOND))
        self.touch(step)
        asked = {name: step.detail[name] for name in ("ask", "show", "by")}
        self.event("approval.requested", step, {**asked, "expires_ns": step.due_ns})

    def approved(self, step: StepState) -> bool:
        """Whether what was approved is what would run now; if not, the question is asked again and the step waits.

        A gated step whose approval was refused fails, also where the workflow goes on after the refusal.

        An input that was not there yet when the person looked makes the approval stale as a changed one does.
        """
        frame = step.frame
        fresh = True
        for name in frame.block.approvals.get(step.spec.id, ()):
            approval = frame.steps[name]
            if not approval.terminal:
                fresh = False
            elif approval.status == "failed":
                self.fail(step, caused(approval.error or {}))
                return False
            elif approval.status == "completed" and approval.detail["gates"][step.spec.id] != gate_digest(
                frame, step.spec.id
            ):
                fresh = False
                frame.unfinished += 1
                approval.output = approval.output_text = approval.finished_ns = None
                approval.detail.pop("decided", None)
                self.event("approval.stale", approval, {"gate": step.path})
                self._begin_approval(approval)
        return fresh

    def decide_approval(self, step: StepState, *, approve: bool, by: str, comment: str) -> bool:
        """A person's decision. ``False``, and the question asked anew, if what is gated has changed since."""
        frozen = step.detail["gates"]
        if approve and any(gate_digest(step.frame, gate) != digest for gate, digest in frozen.items()):
            self._begin_approval(step)
            return False
        self.event("approval.decided", step, {"approved": approve, "by": by, "comment": comment})
        step.detail["decided"] = {"approved": approve, "by": by, "comment": comment}
        if approve:
            self.complete(step, {"approved": True, "by": by, "comment": comment})
        else:
            self.fail(step, error_value("rejected", f"rejected by {by}" + (f": {comment}" if comment else "")))
        return True


def map_frame(step: StepState, index: int) -> Frame:
    """The frame of one item."""
    block = step.spec.body
    assert block is not None  # noqa: S101 - a map without a body does not compile
    scope = step.frame.scope.with_item(step.spec.as_name or "item", step.items[index], index)
    return Frame(block=block, prefix=f"{step.path}[{index}]/", owner=step, index=index, scope=scope)


def caused(failure: dict[str, Any]) -> dict[str, Any]:
    """A control step's failure: the child's, named as the cause."""
    return error_value(failure.get("type", "tool"), failure.get("message", ""), cause=failure, path=failure.get("path"))


def gate_digest(frame: Frame, gate: str) -> str:
    """What an approval freezes of a gated step: its definition, and all that it or a step below it reads from outside.

    What the gate's own approvals answer is left out: it is not there when they ask. What has no value yet (a step that
    comes after the approval, an item of its own map) counts as such.
    """
    spec = frame.block.steps[frame.block.by_id[gate]]
    read: dict[str, Any] = {}
    own = {f"steps.{approval}.{field}" for approval in frame.block.approvals.get(gate, ()) for field in STEP_FIELDS}
    for name in sorted(names_read(spec) - own):
        try:
            read[name] = {"value": frame.scope.lookup(name)}
        except UnknownName:
            read[name] = {}
    definition = spec.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return hashlib.sha256(canonical([definition, read]).encode()).hexdigest()


def names_read(spec: CompiledStep) -> set[str]:
    """Flat names that a step and all steps below it read."""
    own = (*spec.fields.values(), *spec.near, *(one for one in (spec.key, spec.when) if one is not None))
    names = {name for template in own for name in template.variables}
    for block in (spec.body, spec.otherwise):
        for below in block.steps if block is not None else ():
            names |= names_read(below)
    return names
