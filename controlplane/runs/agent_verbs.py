"""The loop of an agent: a turn of the model, what it asked for, the next turn, until it answers or may not go on."""

from __future__ import annotations

from typing import Any

from controlplane.inference.values import ModelAnswer
from controlplane.runs.agent_turns import (
    agent_of,
    calls_frame,
    final_value,
    hear_model,
    hear_repair,
    hear_results,
    model_frame,
)
from controlplane.runs.control import SECOND, caused
from controlplane.runs.model_calls import text_of
from controlplane.runs.model_verbs import ModelVerbs
from controlplane.runs.state import Frame, StepState, error_value
from controlplane.workflows.expressions import ExpressionFailed


class AgentVerbs(ModelVerbs):
    """The part of the machine that drives agents."""

    def begin_agent(self, step: StepState) -> None:
        """The first turn. Raises ``ExpressionFailed``."""
        for name, template in step.spec.fields.items():
            value = template.render(step.frame.scope)
            if name != "inputs" and not isinstance(value, str):
                message = f"gave {type(value).__name__}, not text; write text around the expression"
                raise ExpressionFailed(message, f"{step.spec.pointer}/agent/{name}")
        step.detail |= {"turn": 0, "steps": 0, "usage": {"prompt_tokens": 0, "completion_tokens": 0}}
        if step.spec.timeout_seconds is not None:
            self.wake(step, self.now_ns + int(step.spec.timeout_seconds * SECOND))
        self._next_turn(step)

    def turn_answered(self, step: StepState, answer: ModelAnswer, calls: list[dict[str, Any]]) -> None:
        """The model's part of a turn; ``calls`` are what it wants done, as ``agent_tools.calls_of`` has them."""
        self.heard(step, answer)
        text = text_of(answer.message) or None
        self.complete(step, {"text": text, "calls": calls, "finish_reason": answer.finish_reason[:64]})

    def agent_overdue(self, step: StepState) -> None:
        """The agent's time is over: what it does is cancelled, then it fails."""
        message = f"not done within {step.spec.timeout_seconds:g} s, after {step.detail['turn']} turns"
        step.detail["stopping"] = error_value("timeout", message)
        self.touch(step)
        for frame in list(step.frames.values()):
            self.cancel_frame(frame, "the agent's time is over")

    def turn_frame_done(self, owner: StepState, frame: Frame) -> None:
        """The model has answered, or all that it asked for has ended."""
        turn = owner.detail["turn"]
        stopping = owner.detail.get("stopping")
        self.forget(frame)
        if stopping is not None:
            self.fail(owner, stopping)
        elif frame.failure is not None:
            self.fail(owner, caused(frame.failure))
        elif frame.cancelled:
            self.close_cancelled(owner, "cancelled")
        elif frame.index % 2 == 0:
            self._heard_model(owner, turn, frame.steps["model"])
        else:
            hear_results(owner, turn, frame.steps)
            self._next_turn(owner)

    def _heard_model(self, owner: StepState, turn: int, child: StepState) -> None:
        for name, count in child.detail["usage"].items():
            owner.detail["usage"][name] += count
        owner.detail["model"] = child.detail["model"]
        self.touch(owner)
        hear_model(owner, turn, child.output)
        if owner.said["calls"]:
            self._make_calls(owner, turn)
            return
        value, problems = final_value(owner)
        if not problems:
            self.complete(owner, value)
        elif owner.detail.get("repairing") or owner.spec.answer is None:
            self.fail(owner, error_value("schema", "; ".join(problems)[:2000]))
        else:
            hear_repair(owner, problems)
            owner.detail["repairing"] = True
            self._next_turn(owner)

    def _make_calls(self, owner: StepState, turn: int) -> None:
        frame = calls_frame(owner, turn)
        if frame is None:
            hear_results(owner, turn, {})
            self._next_turn(owner)
        elif why := self._spent(owner, len(frame.block.steps)):
            self.fail(owner, error_value("budget", why))
        else:
            owner.detail["steps"] += len(frame.block.steps)
            owner.frames[frame.index] = frame
            self.open_frame(frame)

    def _next_turn(self, owner: StepState) -> None:
        turn, most = owner.detail["turn"], agent_of(owner.spec).max_turns
        why = self._spent(owner, 1)
        # A repair is asked for once, also after the last turn: the answer is there, only its form is wrong.
        if not why and turn >= most and not owner.detail.get("repairing"):
            why = f"no answer after {turn} turns, its max_turns"
        if why:
            self.fail(owner, error_value("budget", why))
            return
        owner.detail["turn"] = turn + 1
        owner.detail["steps"] += 1
        self.touch(owner)
        frame = model_frame(owner, turn + 1)
        owner.frames[frame.index] = frame
        self.open_frame(frame)

    def _spent(self, owner: StepState, more: int) -> str:
        budget = agent_of(owner.spec).budget
        if budget is None:
            return ""
        tokens, steps = sum(owner.detail["usage"].values()), owner.detail["steps"]
        if budget.tokens is not None and tokens >= budget.tokens:
            return f"{tokens} tokens used, of a budget of {budget.tokens}"
        if budget.steps is not None and steps + more > budget.steps:
            return f"{steps} steps made and {more} more wanted, of a budget of {budget.steps}"
        return ""
