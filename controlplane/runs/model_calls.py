"""From a ready ``llm`` step to the call of a model, and from the model's answer to the step's value. Pure.

An answer that does not fit the step's schema is sent back once, with what is wrong with it: the repair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from controlplane.inference.values import ModelCall, ModelFailed
from controlplane.runs import labels, questions
from controlplane.runs.state import RunState, StepState, error_value
from controlplane.runs.work import WorkRefused, call_key
from controlplane.tools.schemas import Schema
from controlplane.workflows.documents import check_values, refuse_constant
from controlplane.workflows.expressions import ExpressionFailed
from controlplane.workflows.spec import Message, Sampling

CALL_SECONDS = 300.0
"""How long a model may take for one answer, unless the step says so."""
ANSWER_MOST = 4 * 1024 * 1024
"""Characters of one answer."""
REPAIR_MOST = 64 * 1024
PROMPT_MOST = 16 * 1024 * 1024
_MESSAGES = TypeAdapter(list[Message])
_FAILURES = frozenset({"rate_limited", "timeout", "schema", "policy_denied", "not_found", "model"})


def model_call(run: RunState, step: StepState, now_ns: int) -> ModelCall:
    """The call of an ``llm`` step. Raises: WorkRefused."""
    given = step.spec.spec.llm
    assert given is not None  # noqa: S101 - the verb is llm
    messages = [*_messages(step), *_repair(step.detail.get("repair"))]
    body = {"messages": messages, **sampling(given)}
    if given.stop is not None:
        body["stop"] = given.stop
    if given.output is not None:
        body["response_format"] = response_format(step.spec.id, given.output)
    return asked(run, step, body, labels.of_step(step), now_ns)


def asked(run: RunState, step: StepState, body: dict[str, Any], prompt: Mapping[str, Any], now_ns: int) -> ModelCall:
    """The call with this body. Its key changes only when an answer has been recorded: an unrecorded call is repeated
    under the same one."""
    if sum(len(str(message)) for message in body["messages"]) > PROMPT_MOST:
        raise WorkRefused(error_value("schema", f"the prompt has more than {PROMPT_MOST:,} characters"))
    answers = str(step.detail.get("answers", 0))
    return ModelCall(
        tenant=run.tenant,
        principal=run.principal["id"],
        models=step.spec.models,
        body=body,
        key=call_key(run.id, step.path, "model", answers, 0),
        labels=prompt,
        run=run.id,
        path=step.path,
        asker=questions.asker(
            tenant=run.tenant, principal=run.principal, workflow=run.workflow, run=run.id, step=step.path, now_ns=now_ns
        ),
        deadline_seconds=step.spec.timeout_seconds or CALL_SECONDS,
    )


def sampling(given: Sampling) -> dict[str, Any]:
    """The members of a request that say how to sample; what nobody said is left to the server."""
    said = {name: getattr(given, name) for name in ("max_tokens", "temperature", "top_p", "seed")}
    return {name: value for name, value in said.items() if value is not None}


def response_format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Asks the server to decode by this schema."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


def failure(failed: ModelFailed) -> dict[str, Any]:
    """A failed call as the step's error."""
    kind = failed.type if failed.type in _FAILURES else "model"
    return error_value(kind, failed.message[:2000], retryable=failed.retryable)


def value_of(text: str, wanted: Schema | None, finish_reason: str) -> tuple[Any, list[str]]:
    """The value of an answer, and what is wrong with it; nothing is, of an answer without schema."""
    if len(text) > ANSWER_MOST:
        return None, [f"the answer has {len(text):,} characters, and {ANSWER_MOST:,} at most"]
    if wanted is None:
        return text, []
    try:
        value = json_of(text)
    except ValueError as error:
        cut = "; it was cut off at its limit of tokens, raise max_tokens" if finish_reason == "length" else ""
        return None, [f"the answer is not JSON: {error}{cut}"]
    try:
        problems = check_values(value) or wanted.check(value)
    except RecursionError:
        return None, ["the answer is nested too deep"]
    return value, [f"{one.pointer or '/'}: {one.message}" for one in problems[:10]]


def text_of(message: Mapping[str, Any]) -> str:
    """What an assistant's message says, without what cannot be stored: NUL and broken surrogates."""
    text = message.get("content")
    if not isinstance(text, str):
        return ""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def json_of(text: str) -> Any:
    """Strict JSON, also inside a Markdown fence, as models write it. Raises ``ValueError``."""
    stripped = text.strip()
    if stripped.startswith("```") and stripped.endswith("```") and "\n" in stripped:
        stripped = stripped[stripped.index("\n") + 1 : -3]
    try:
        return json.loads(stripped, parse_constant=refuse_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def repair_text(problems: list[str]) -> str:
    """What a model is told of an answer that does not fit."""
    listed = "\n".join(f"- {one}" for one in problems)
    return f"This answer does not fit the JSON Schema that was asked for:\n{listed}\nAnswer again, with the JSON only."


def _messages(step: StepState) -> list[dict[str, Any]]:
    fields, scope = step.spec.fields, step.frame.scope
    try:
        if "messages" not in fields:
            texts = {name: fields[name].render(scope) for name in ("system", "prompt") if name in fields}
            roles = {"system": "system", "prompt": "user"}
            return [{"role": roles[name], "content": _text(step, name, text)} for name, text in texts.items()]
        rendered = fields["messages"].render(scope)
    except ExpressionFailed as failed:
        raise WorkRefused(error_value("schema", str(failed))) from failed
    try:
        return [one.model_dump(mode="json") for one in _MESSAGES.validate_python(rendered)]
    except ValidationError as error:
        deepest = max(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
        where = "/".join(str(part) for part in deepest["loc"])
        message = f"`messages` of {step.path} at /{where}: {deepest['msg']}"
        raise WorkRefused(error_value("schema", message[:2000])) from None


def _text(step: StepState, name: str, value: Any) -> str:
    if not isinstance(value, str):
        message = f"`{name}` of {step.path} gave {type(value).__name__}, not text; write text around the expression"
        raise WorkRefused(error_value("schema", message))
    return value


def _repair(repair: dict[str, Any] | None) -> list[dict[str, Any]]:
    if repair is None:
        return []
    told = {"role": "user", "content": repair_text(repair["problems"])}
    return [{"role": "assistant", "content": repair["answer"]}, told]
