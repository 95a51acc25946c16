"""What a step is to be near (``near``): data by address, an earlier step, or a model. It changes costs, nothing else.

An earlier step stands for the artifacts it left, or where it left none for the node it ran on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from controlplane.runs.state import StepState
from controlplane.workflows.addresses import MODEL, refuse_near
from controlplane.workflows.compiled import CompiledStep
from controlplane.workflows.expressions import ExpressionFailed, Scope
from scheduler.demand import DataNeed

ARTIFACTS_MOST = 16
"""Artifacts of one step that count, the largest."""


class Near(NamedTuple):
    """``data`` by address, not yet looked up; ``models`` by name."""

    data: tuple[DataNeed, ...] = ()
    models: tuple[str, ...] = ()


def near_of(step: StepState) -> Near:
    """Of a step that is about to be placed. Raises: ExpressionFailed for a value that is no address."""
    data: list[DataNeed] = []
    models: list[str] = []
    for template in step.spec.near:
        value = template.render(step.frame.scope)
        for one in value if isinstance(value, list) else [value]:
            earlier = _earlier(step, one) if template.is_literal else None
            if earlier is not None:
                data += _left_by(earlier)
            else:
                _add(_checked(one, step.spec.pointer), data, models)
    return Near(tuple(dict.fromkeys(data)), tuple(dict.fromkeys(models)))


def literal_near(spec: CompiledStep) -> Near:
    """As far as it can be told before anything ran: what is written out, without steps."""
    data: list[DataNeed] = []
    models: list[str] = []
    for template in spec.near:
        value = template.render(Scope.root(None, {})) if template.is_literal else None
        if isinstance(value, str) and refuse_near(value) is None:
            _add(value, data, models)
    return Near(tuple(dict.fromkeys(data)), tuple(dict.fromkeys(models)))


def _add(address: str, data: list[DataNeed], models: list[str]) -> None:
    if address.startswith(MODEL):
        models.append(address.removeprefix(MODEL))
    else:
        data.append(DataNeed(key=address))


def _checked(value: Any, pointer: str) -> str:
    """A computed value, held to the rules of a written one."""
    if not isinstance(value, str):
        raise ExpressionFailed(f"`near` is {type(value).__name__}, not an address", f"{pointer}/near")
    refused = refuse_near(value)
    if refused is not None:
        raise ExpressionFailed(f"`near`: {refused[0]}; {refused[1]}", f"{pointer}/near")
    return value


def _earlier(step: StepState, name: str) -> StepState | None:
    """The step of that id that this one can see, the innermost."""
    frame = step.frame
    while True:
        found = frame.steps.get(name)
        if found is not None and found is not step:
            return found
        if frame.owner is None:
            return None
        frame = frame.owner.frame


def _left_by(step: StepState) -> Iterable[DataNeed]:
    left = (step.report or {}).get("artifacts") or ()
    largest = sorted(left, key=lambda one: -int(one["size_bytes"]))[:ARTIFACTS_MOST]
    if largest:
        return [DataNeed(key=f"artifact://{one['id']}") for one in largest]
    return [] if step.node is None else [DataNeed(key=f"node:{step.node}")]
