"""What happens to a step whose work is one answer of a model: called, answered, repaired once if it does not fit."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from controlplane.inference.values import ModelAnswer
from controlplane.runs import labels
from controlplane.runs.control import ControlVerbs
from controlplane.runs.model_calls import REPAIR_MOST, text_of, value_of
from controlplane.runs.state import StepState, error_value

TOKENS_MOST = 1_000_000_000
"""No server's count of one answer is believed beyond this."""


class ModelVerbs(ControlVerbs):
    """The part of the machine that takes models' answers."""

    dispatch: list[StepState]

    @abstractmethod
    def complete(self, step: StepState, output: Any) -> None: ...

    def calling(self, step: StepState, *, attempt: str, decision: str) -> None:
        """A model is about to be called for this step; the fence rises as with every attempt."""
        step.status = "running"
        step.number += 1
        step.fence += 1
        step.attempt, step.node, step.tier, step.decision = attempt, None, None, decision
        step.detail.pop("waiting", None)
        step.detail.pop("policy_retries", None)
        step.started_ns = step.started_ns or self.now_ns
        self.touch(step)
        self.event("step.calling", step, {"models": list(step.spec.models), "number": step.number})

    def answered(self, step: StepState, answer: ModelAnswer) -> None:
        """The answer, counted and judged; recorded once, in this transition."""
        self.heard(step, answer)
        text = text_of(answer.message)
        value, problems = value_of(text, step.spec.answer, answer.finish_reason)
        if not problems:
            step.detail.pop("repair", None)
            self.complete(step, value)
        elif step.spec.answer is not None and "repair" not in step.detail:
            step.detail["repair"] = {"answer": text[:REPAIR_MOST], "problems": problems}
            step.status, step.attempt = "ready", None
            self.touch(step)
            self.dispatch.append(step)
        else:
            step.detail.pop("repair", None)
            self.fail(step, error_value("schema", "; ".join(problems)[:2000]))

    def heard(self, step: StepState, answer: ModelAnswer) -> None:
        """Count an answer, and label it as its prompt was."""
        step.labels = labels.join(labels.of_step(step), {"integrity": "trusted", "sources": [f"model:{answer.model}"]})
        self.event("step.answered", step, usage(step, answer))


def usage(step: StepState, answer: ModelAnswer) -> dict[str, Any]:
    """Adds what the answer cost to the step's detail; the answer's own share is returned."""
    own = {
        "prompt_tokens": min(max(0, answer.prompt_tokens), TOKENS_MOST),
        "completion_tokens": min(max(0, answer.completion_tokens), TOKENS_MOST),
    }
    before = step.detail.get("usage", {})
    step.detail["usage"] = {name: before.get(name, 0) + count for name, count in own.items()}
    step.detail["answers"] = step.detail.get("answers", 0) + 1
    served = {"model": answer.model, "replica": answer.replica, "finish_reason": answer.finish_reason[:64]}
    step.detail.update(served)
    return {**served, **own, "seconds": round(answer.seconds, 6)}
