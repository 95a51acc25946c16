"""Data-flow labels: how integrity travels from inputs through steps to arguments.

``untrusted`` is worst. A step's output inherits the join of what went into it; data roots, HTTP answers and anything
computed from them are untrusted. Policy sees the labels with every argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controlplane.runs.state import Frame, StepState
from controlplane.tools.registry import Tool
from controlplane.workflows.expressions import Template
from controlplane.workflows.spec import Verb

_FROM_OUTSIDE = frozenset({"artifact.read", "mcp.list"})
_ORDER = ("trusted", "user", "untrusted")


def join(*labels: dict[str, Any]) -> dict[str, Any]:
    """The worst integrity and all sources, at most 64 of them."""
    worst = max((_ORDER.index(one.get("integrity", "trusted")) for one in labels), default=0)
    sources = sorted({source for one in labels for source in one.get("sources", ())})[:64]
    return {"integrity": _ORDER[worst], "sources": sources} if sources else {"integrity": _ORDER[worst]}


def of_templates(frame: Frame, templates: Iterable[Template]) -> dict[str, Any]:
    """The labels of a value made from these expressions in this frame."""
    found = [{"integrity": "trusted"}]
    for template in templates:
        for name in template.variables:
            found.append(_of_name(frame, name))
    return join(*found)


def _of_name(frame: Frame, name: str) -> dict[str, Any]:
    parts = name.split(".")
    if parts[0] == "input":
        return {"integrity": "user", "sources": ["input"]}
    if parts[0] == "run":
        return {"integrity": "trusted"}
    here: Frame | None = frame
    while here is not None:
        if parts[0] == "steps" and len(parts) > 1 and parts[1] in here.steps:
            step = here.steps[parts[1]]
            return step.labels or {"integrity": "trusted"}
        owner = here.owner
        if parts[0] != "steps" and owner is not None and owner.spec.as_name == parts[0]:
            return of_templates(owner.frame, [owner.spec.fields["over"]])
        here = None if owner is None else owner.frame
    return {"integrity": "trusted"}


def of_result(tool: Tool | None) -> dict[str, Any]:
    """What a tool's answer is worth: what came from outside, or from a file that a guest wrote, is untrusted."""
    if tool is None or (tool.kind == "builtin" and tool.builtin_name not in _FROM_OUTSIDE):
        return {"integrity": "trusted"}
    return {"integrity": "untrusted", "sources": [tool.name]}


def of_given(step: StepState) -> dict[str, Any]:
    """What a step was made from: its expressions, or for a step that an agent's model wrote all that the model read."""
    labels = of_templates(step.frame, step.spec.fields.values())
    owner = step.frame.owner
    if owner is not None and owner.spec.verb is Verb.AGENT:
        labels = join(labels, of_given(owner), owner.labels)
    return labels


def of_step(step: StepState) -> dict[str, Any]:
    """What a step's output inherits, before anything it fetched while running is added."""
    labels = of_given(step)
    for frame in step.frames.values():
        labels = join(labels, *(below.labels for below in frame.steps.values()))
    if step.spec.verb is Verb.CODE and "inputs" in step.spec.fields:
        labels = join(labels, {"integrity": "untrusted", "sources": ["data"]})
    if step.spec.sandbox.network and step.spec.verb is Verb.CODE:
        labels = join(labels, {"integrity": "untrusted", "sources": ["network"]})
    return labels
