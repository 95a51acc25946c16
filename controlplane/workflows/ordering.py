"""Which sibling waits for which: top to bottom, or by ``needs`` as soon as one step of the list has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.workflows.fields import Fields
from controlplane.workflows.problem_values import Problem, child, did_you_mean
from controlplane.workflows.spec import Step


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """By position in the list: ``needs`` waits for directly, ``before`` is everything surely finished before."""

    needs: tuple[tuple[str, ...], ...]
    before: tuple[frozenset[str], ...]
    why_hidden: str

    def gates(self, index: int, siblings: Sequence[Step], fields: Fields) -> tuple[str, ...]:
        """The ids that an approve step holds back: those it names, else the next sibling, if there is one."""
        own, approve = siblings[index].id, siblings[index].approve
        named = approve.gates if approve is not None else None
        wanted = named if named is not None else [step.id for step in siblings[index + 1 : index + 2]]
        places = {step.id: place for place, step in enumerate(siblings)}
        for position, gate in enumerate(wanted):
            path = ("approve", "gates", position) if named is not None else ("approve",)
            if gate not in places:
                hint = f"{did_you_mean(gate, places)}gates names siblings that come after the approval"
                fields.problem(f"there is no sibling {gate!r} to gate", hint, *path, kind="undefined_name")
            elif own not in self.before[places[gate]]:
                hint = f"put {gate!r} after it, or give {gate!r} needs: [{own!r}]"
                fields.problem(f"{gate!r} does not wait for this approval", hint, *path, kind="order")
        return tuple(wanted)


def order(steps: Sequence[Step], pointer: str, *, together: bool, problems: list[Problem]) -> Ordering:
    """The order of a list. ``together``: children of ``parallel``, which wait for nothing they do not name.

    Unknown needs, a step that needs itself and cycles are added to ``problems``.
    """
    ids = [step.id for step in steps]
    if not together and all(step.needs is None for step in steps):
        before: list[frozenset[str]] = []
        earlier: set[str] = set()
        for identifier in ids:
            before.append(frozenset(earlier))
            earlier.add(identifier)
        needs = tuple((ids[index - 1],) if index else () for index in range(len(ids)))
        return Ordering(needs=needs, before=tuple(before), why_hidden="it comes later, or is this step itself")
    wanted: dict[str, list[str]] = {}
    for index, step in enumerate(steps):
        wanted[step.id] = []
        for position, need in enumerate(step.needs or ()):
            where = child(pointer, index, "needs", position)
            if need not in ids:
                hint = f"{did_you_mean(need, ids)}needs names steps of the same list"
                message = f"there is no sibling {need!r}"
                problems.append(Problem(pointer=where, message=message, hint=hint, type="undefined_name"))
            elif need not in wanted[step.id]:
                wanted[step.id].append(need)
    ancestors, cycle = _ancestors(wanted)
    if cycle:
        message = f"these steps wait for each other: {' → '.join(cycle)}"
        where = child(pointer, ids.index(cycle[0]), "needs")
        problems.append(Problem(pointer=where, message=message, hint="remove one of these needs", type="cycle"))
    return Ordering(
        needs=tuple(tuple(wanted[identifier]) for identifier in ids),
        before=tuple(ancestors.get(identifier, frozenset()) for identifier in ids),
        why_hidden="this step does not need it (directly or through others)",
    )


def _ancestors(needs: dict[str, list[str]]) -> tuple[dict[str, frozenset[str]], list[str]]:
    """All transitive needs of each id, and one cycle (closed, first id repeated) if there is any."""
    waiting = {identifier: len(wanted) for identifier, wanted in needs.items()}
    dependents: dict[str, list[str]] = {identifier: [] for identifier in needs}
    for identifier, wanted in needs.items():
        for need in wanted:
            dependents[need].append(identifier)
    ready = [identifier for identifier, count in waiting.items() if count == 0]
    ancestors: dict[str, frozenset[str]] = {}
    while ready:
        identifier = ready.pop()
        direct = needs[identifier]
        ancestors[identifier] = frozenset(direct).union(*(ancestors[need] for need in direct))
        for dependent in dependents[identifier]:
            waiting[dependent] -= 1
            if waiting[dependent] == 0:
                ready.append(dependent)
    stuck = [identifier for identifier in needs if identifier not in ancestors]
    if not stuck:
        return ancestors, []
    path: list[str] = []
    current = stuck[0]
    while current not in path:
        path.append(current)
        current = next(need for need in needs[current] if need not in ancestors)
    return ancestors, [*path[path.index(current) :], current]
