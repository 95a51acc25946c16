"""Effects of a step: recorded once, answered from the journal ever after.

intended → authorized   in one commit, before performing        ``authorized``
performed → recorded    in one commit, before the guest sees it  ``recorded``
"""

from __future__ import annotations

import time
from typing import Any

from controlplane.runs.controller import call_write
from controlplane.runs.state import CallState, RunState, StepState
from controlplane.runs.work import ToolCall
from controlplane.store import Write, canonical, encoded


def authorized(run: RunState, step: StepState, call: ToolCall, attempt: str, number: int, decision: str) -> Write:
    """The call may be performed by this attempt."""
    state = CallState(
        key=call.key,
        tool=call.tool.name,
        tool_digest=call.tool.digest,
        effect=call.tool.effect,
        args=canonical(call.args),
        attempt=attempt,
        number=number,
        state="authorized",
        decision=decision,
    )
    step.calls[call.key] = state
    return _write(run, step, state)


def recorded(run: RunState, step: StepState, state: CallState, ok: bool, value: Any) -> Write:
    """The call's outcome; ``value`` is the result, or the error."""
    state.state, state.ok, state.result = "recorded", ok, value
    return _write(run, step, state)


def reused(run: RunState, step: StepState, state: CallState, attempt: str, number: int) -> Write:
    """A later attempt made the same call and was answered from the journal."""
    state.attempt, state.number = attempt, number
    return _write(run, step, state)


def _write(run: RunState, step: StepState, state: CallState) -> Write:
    now = time.time_ns()
    done = state.state == "recorded"
    return call_write(
        run,
        step,
        {
            "key": state.key,
            "attempt": state.attempt,
            "number": state.number,
            "tool": state.tool,
            "tool_digest": state.tool_digest,
            "effect": state.effect,
            "state": state.state,
            "args": state.args,
            "decision": state.decision,
            "ok": state.ok,
            "result": encoded(state.result) if done else None,
            "labels": "{}",
            "created_ns": now,
            "recorded_ns": now if done else None,
        },
    )
