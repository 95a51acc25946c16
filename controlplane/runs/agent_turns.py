"""An agent's turns as steps of a run, and its conversation as they tell it. Pure.

    fix ─ frame fix#1/ ─ model                 one answer
        └ frame fix#1/ ─ call0, code1 …        what it asked for, together

Each turn is a journal entry of its own: a child's row has what was added, never the conversation so far. That is put
together from the children, the same way while the run goes on and after a restart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from controlplane.runs.model_calls import repair_text, value_of
from controlplane.runs.state import Frame, StepState
from controlplane.store import encoded
from controlplane.workflows.compiled import Block, CompiledStep, Resources, Retry
from controlplane.workflows.expressions import Scope, literal
from controlplane.workflows.settings import CODE_CPU_MILLI, retry_of
from controlplane.workflows.spec import Agent, Code, Step, Verb

RESULT_MOST = 20_000
"""Characters of one result that the model is shown; the journal has all of it."""
_TAIL_MOST = 4000


def agent_of(spec: CompiledStep) -> Agent:
    """What the step's author wrote."""
    agent = spec.spec.agent
    assert agent is not None  # noqa: S101 - the verb is agent
    return agent


def is_turn(step: StepState) -> bool:
    """Whether the step is the model's part of an agent's turn."""
    owner = step.frame.owner
    return owner is not None and owner.spec.verb is Verb.AGENT and step.spec.verb is Verb.LLM


def model_frame(owner: StepState, turn: int) -> Frame:
    """Where the model answers."""
    spec = replace(
        owner.spec,
        id="model",
        verb=Verb.LLM,
        needs=(),
        when=None,
        fields={},
        retry=retry_of(owner.spec.spec),
        timeout_seconds=None,
        on_error="fail",
        gates=(),
        answer=None,
    )
    return _frame(owner, turn, (spec,), index=2 * turn)


def calls_frame(owner: StepState, turn: int) -> Frame | None:
    """Where what the model asked for is done; ``None`` if none of it can be."""
    specs = [_call_spec(owner, index, call) for index, call in enumerate(owner.said["calls"]) if "error" not in call]
    return _frame(owner, turn, tuple(specs), index=2 * turn + 1) if specs else None


def _frame(owner: StepState, turn: int, specs: tuple[CompiledStep, ...], *, index: int) -> Frame:
    block = Block(steps=specs, by_id={spec.id: place for place, spec in enumerate(specs)})
    # What the children read is in them already; names of the workflow mean nothing to a model.
    return Frame(block=block, prefix=f"{owner.path}#{turn}/", owner=owner, index=index, scope=Scope.root(None, {}))


def _call_spec(owner: StepState, index: int, call: Mapping[str, Any]) -> CompiledStep:
    agent, secrets = agent_of(owner.spec), owner.spec.spec.secrets
    common = replace(
        owner.spec,
        needs=(),
        when=None,
        retry=Retry(),
        timeout_seconds=None,
        on_error="continue",
        gates=(),
        models=(),
        answer=None,
    )
    if "code" not in call:
        spec = Step.model_construct(id=f"call{index}", tool=call["tool"], secrets=secrets)
        return replace(common, id=spec.id, verb=Verb.TOOL, spec=spec, fields={"args": literal(call["args"])})
    code = Code.model_construct(python=call["code"], tools=list(agent.tools or ()))
    spec = Step.model_construct(id=f"code{index}", code=code, secrets=secrets)
    fields = {"source": literal(call["code"])}
    if "inputs" in owner.spec.fields:
        fields["inputs"] = literal(owner.spec.fields["inputs"].render(owner.frame.scope))
    resources = Resources(cpu_milli=CODE_CPU_MILLI, memory_bytes=owner.spec.sandbox.memory_bytes)
    return replace(common, id=spec.id, verb=Verb.CODE, spec=spec, fields=fields, resources=resources)


def hear_model(owner: StepState, turn: int, output: Mapping[str, Any]) -> None:
    """The model has spoken: its words join the conversation."""
    owner.said = output
    message: dict[str, Any] = {"role": "assistant", "content": output["text"]}
    if output["calls"]:
        message["tool_calls"] = [
            {"id": _call_id(turn, index), "type": "function", "function": _said(call)}
            for index, call in enumerate(output["calls"])
        ]
    owner.conversation.append(message)


def _said(call: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in call:
        # Nonsense is not sent back as it came: some servers parse the arguments of a conversation.
        return {"name": call["name"], "arguments": json.dumps({"arguments": call["arguments"]})}
    args = {"code": call["code"]} if "code" in call else call["args"]
    return {"name": call["name"], "arguments": encoded(args)}


def hear_results(owner: StepState, turn: int, children: Mapping[str, StepState]) -> None:
    """What the calls gave joins the conversation, in the order in which they were asked for."""
    for index, call in enumerate(owner.said["calls"]):
        if "error" in call:
            text = f"Error: {call['error']}"
        else:
            text = result_text(children[f"{'code' if 'code' in call else 'call'}{index}"])
        owner.conversation.append({"role": "tool", "tool_call_id": _call_id(turn, index), "content": text})


def final_value(owner: StepState) -> tuple[Any, list[str]]:
    """The agent's output, from words that ask for nothing more; and what is wrong with it."""
    return value_of(owner.said["text"] or "", owner.spec.answer, owner.said["finish_reason"])


def hear_repair(owner: StepState, problems: list[str]) -> None:
    """The model is told that its answer does not fit."""
    owner.conversation.append({"role": "user", "content": repair_text(problems)})


def result_text(child: StepState) -> str:
    """A call's outcome as the model is told it."""
    if child.error is not None:
        told = f"Error ({child.error['type']}): {child.error['message']}"
        told += f"\n{remedy}" if (remedy := child.error.get("remedy")) else ""
    elif child.spec.verb is Verb.CODE:
        told = "None" if child.output is None else encoded(child.output)
    else:
        told = child.output if isinstance(child.output, str) else encoded(child.output)
    if len(told) > RESULT_MOST:
        told = f"{told[:RESULT_MOST]}\n… cut: {len(told) - RESULT_MOST:,} more characters; ask for less at a time"
    if child.spec.verb is not Verb.CODE or child.report is None:
        return told
    printed = child.report["stdout_tail"][-_TAIL_MOST:]
    failed = child.report["stderr_tail"][-_TAIL_MOST:] if child.error is not None else ""
    return told + (f"\nprinted:\n{printed}" if printed else "") + (f"\nstderr:\n{failed}" if failed else "")


def _call_id(turn: int, index: int) -> str:
    """Ours, not the server's: unique in the conversation, and the same after a restart."""
    return f"call_{turn}_{index}"
