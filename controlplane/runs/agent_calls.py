"""The call of a model for one turn of an agent: the prompt, what was said since, and what it may do next. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from controlplane.inference.values import ModelCall
from controlplane.runs import labels
from controlplane.runs.agent_tools import functions
from controlplane.runs.agent_turns import agent_of
from controlplane.runs.model_calls import asked, response_format, sampling
from controlplane.runs.state import RunState, StepState
from controlplane.tools.registry import Tool


def turn_call(run: RunState, step: StepState, tools: Sequence[Tool], now_ns: int) -> ModelCall:
    """The call of ``step``, the model's part of a turn. Raises: WorkRefused."""
    owner = step.frame.owner
    assert owner is not None  # noqa: S101 - a turn belongs to an agent
    agent, fields, scope = agent_of(owner.spec), owner.spec.fields, owner.frame.scope
    # A repair is about form: the server holds it, which most do only where no functions are offered.
    offered = [] if owner.detail.get("repairing") else functions(agent, tools, owner.spec.sandbox.network)
    told = [fields["instructions"].render(scope)] if "instructions" in fields else []
    if agent.output is not None and offered:
        told.append(f"When you are done, answer with JSON only, by this JSON Schema:\n{json.dumps(agent.output)}")
    system = [{"role": "system", "content": "\n\n".join(told)}] if told else []
    prompt = {"role": "user", "content": fields["prompt"].render(scope)}
    body: dict[str, Any] = {"messages": [*system, prompt, *owner.conversation], **sampling(agent)}
    if offered:
        body["tools"] = offered
    elif agent.output is not None:
        body["response_format"] = response_format(owner.spec.id, agent.output)
    if agent.budget is not None and agent.budget.tokens is not None:
        left = agent.budget.tokens - sum(owner.detail["usage"].values())
        body["max_tokens"] = max(1, min(left, body.get("max_tokens", left)))
    return asked(run, step, body, labels.of_step(step), now_ns)
