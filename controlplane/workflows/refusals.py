"""Pydantic's errors as problems: unknown verbs and members get the closest match, known plans a clear "not yet"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from controlplane.workflows import spec
from controlplane.workflows.problem_values import Problem, child, did_you_mean

_MODELS: Mapping[str, type[BaseModel]] = {
    "code": spec.Code, "map": spec.Map, "parallel": spec.Parallel, "approve": spec.Approve, "wait": spec.Wait,
    "llm": spec.Llm,
    "agent": spec.Agent,
    "budget": spec.AgentBudget,
    "retry": spec.RetrySpec, "sandbox": spec.SandboxSettings, "resources": spec.ResourceSettings,
    "defaults": spec.Defaults, "network": spec.NetworkHost,
}  # fmt: skip

_SANDBOX = "a sandbox has tier, image, memory, wall and network in this release"
NOT_YET: Mapping[str, Mapping[str, str]] = {
    "step": {
        "flow": "copy the steps of the sub-workflow here",
        "loop": "use a map step, or submit another run",
        "expand": "submit what the model wrote as a run of its own",
        "gang": "steps are placed one by one in this release",
        "undo": "write the compensation as a step with `when` on the other's status",
        "stream": "stdout and stderr of code steps stream already",
        "budget": "bound each step with timeout, retry.max and sandbox limits",
        "priority": "all steps have the same priority in this release",
    },
    "workflow": {"budget": "bound each step with timeout, retry.max and sandbox limits"},
    "code": {
        "javascript": "write it in python or shell",
        "wasm": "write it in python or shell",
        "command": "write it in shell",
    },
    "llm": dict.fromkeys(
        ("collections", "guardrails", "cache", "stream", "tools"),
        "write the context into the prompt and check the answer in the next step",
    ),
    "wait": {"event": "wait for a duration or until an instant"},
    "defaults": {"secrets": "name secrets on each step"},
    "sandbox": {
        **dict.fromkeys(("session", "checkpoint", "gpu", "template", "snapshot"), _SANDBOX),
        "egress": "name the hosts in `network`",
    },
    "network": dict.fromkeys(("methods", "paths", "path", "bytes"), "grant whole hosts: name host and ports"),
}  # fmt: skip
_TIERS_NOT_YET = ("gvisor", "microvm")


def problems_of(error: ValidationError, document: Any) -> list[Problem]:
    """One problem an error, in document order."""
    found = [(details, _place(details["loc"], document)) for details in error.errors(include_url=False)]
    # Where one of several shapes is meant, what is wrong inside that shape says more than that it is not another.
    inner = {place[:length] for _, place in found for length in range(len(place))}
    return [
        _problem(details, place) for details, place in found if details["type"] != "string_type" or place not in inner
    ]


def _place(location: tuple[int | str, ...], document: Any) -> tuple[int | str, ...]:
    """The place in the document; pydantic's location also names the shapes that it tried."""
    place: list[int | str] = []
    here = document
    for index, part in enumerate(location):
        inside = part in here if isinstance(here, dict) else isinstance(here, list) and isinstance(part, int)
        if inside:
            here = here[part] if isinstance(here, dict) or int(part) < len(here) else None
        elif not isinstance(here, dict) or index < len(location) - 1:
            continue
        place.append(part)
    return tuple(part for part in place if part != "[key]")


def _problem(details: ErrorDetails, location: tuple[int | str, ...]) -> Problem:
    pointer = child("", *location)
    kind, value = details["type"], details.get("input")
    if kind == "extra_forbidden":
        return _unknown(location, pointer)
    if kind == "missing":
        name = location[-1]
        return Problem(pointer=pointer, message=f"{name!r} is required", hint=f"add {name!r}", type="schema")
    if location[-1:] == ("tier",) and value in _TIERS_NOT_YET:
        return Problem(
            pointer=pointer, message=f"the tier {value!r} is not there yet", type="not_yet",
            hint="use auto, wasm, jail or container",
        )  # fmt: skip
    message = details["msg"].removeprefix("Value error, ")
    if kind == "literal_error":
        expected = str(details.get("ctx", {}).get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
        hint = did_you_mean(value, expected) if isinstance(value, str) else ""
        return Problem(
            pointer=pointer, message=message, hint=f"{hint}write one of {', '.join(expected)}", type="schema"
        )
    return Problem(pointer=pointer, message=_lower(message), hint=_hint(kind, location, details), type="schema")


def _unknown(location: tuple[int | str, ...], pointer: str) -> Problem:
    name = str(location[-1])
    context, model = _context(location)
    if name in NOT_YET.get(context, {}):
        return Problem(
            pointer=pointer, message=f"{name!r} is not there yet", hint=NOT_YET[context][name], type="not_yet"
        )
    known = [field.alias or key for key, field in model.model_fields.items()] if model is not None else []
    verb = context == "step"
    message = f"{name!r} is neither a verb nor a modifier of a step" if verb else f"{name!r} is not known in {context}"
    hint = did_you_mean(name, known)
    if verb:
        hint += f"verbs: {', '.join(spec.Verb)}"
    elif known:
        hint += f"members: {', '.join(known)}"
    else:
        hint = f"remove it: {context} has no members, write {{}}"
    return Problem(pointer=pointer, message=message, hint=hint, type="unknown_verb" if verb else "unknown_member")


def _context(location: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None]:
    if len(location) == 1:
        return "workflow", spec.Workflow
    parent = location[-2]
    if isinstance(parent, int):
        if location[-3] == "messages":
            return "a message", spec.Message
        if location[-3] == "network":
            return "network", spec.NetworkHost
        return "step", spec.Step
    return str(parent), _MODELS.get(str(parent))


def _hint(kind: str, location: tuple[int | str, ...], details: ErrorDetails) -> str:
    last = location[-1] if location else ""
    if kind == "string_pattern_mismatch":
        if last == "id" or last == "as":
            return "use lower-case letters, digits and _, starting with a letter"
        return f"it must match {details.get('ctx', {}).get('pattern', '')}"
    if kind in ("model_type", "dict_type"):
        return "write a JSON object"
    if kind == "list_type":
        return "write a JSON array"
    if kind == "value_error":
        return "for example '30s' for time, '512Mi' for memory"
    return "see the format reference, docs/workflow.md"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def schema_problems(schema: Any, pointer: str) -> list[Problem]:
    """Problems a JSON Schema may not have here: references that leave the document."""
    problems: list[Problem] = []
    stack = [(pointer, schema)]
    while stack:
        where, value = stack.pop()
        if isinstance(value, dict):
            for key in ("$ref", "$dynamicRef", "$recursiveRef"):
                if isinstance(value.get(key), str) and not value[key].startswith("#"):
                    problems.append(
                        Problem(
                            pointer=child(where, key),
                            message="a reference may not leave the document",
                            type="schema",
                            hint="put the schema under $defs and refer to #/$defs/NAME",
                        )
                    )
            stack.extend((child(where, key), member) for key, member in value.items())
        elif isinstance(value, list):
            stack.extend((child(where, index), member) for index, member in enumerate(value))
    return problems
