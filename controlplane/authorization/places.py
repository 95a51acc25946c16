"""Places in a question or in the platform's data, as rules name them, and what to say of one that cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from controlplane.authorization import shapes
from controlplane.authorization.scope import Scope, step_of
from controlplane.authorization.shapes import Shape, Step
from controlplane.authorization.syntax import Node

LITERALS = {"String": "string", "RawString": "string", "Number": "number", "Bool": "boolean", "Null": "null"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A reference that leads somewhere."""

    root: str
    path: tuple[Step, ...]
    shape: Shape

    def __str__(self) -> str:
        return shapes.written(self.root, self.path)

    def inside(self, step: Step) -> Place:
        """One step further down; its shape is empty if nothing can be there."""
        return Place(root=self.root, path=(*self.path, step), shape=shapes.below(self.shape, step))

    def suited(self, kinds: frozenset[str]) -> list[Place]:
        """The fields right below that may have one of these types."""
        below = [self.inside(key) for key in shapes.keys(self.shape)]
        return [one for one in below if shapes.kinds(one.shape) & kinds]


class Places:
    """The places one rule can name. ``entries`` are the entry points whose questions it may meet."""

    def __init__(self, entries: Sequence[str], scope: Scope) -> None:
        self._scope = scope
        self._asked = " or ".join(f"runtime.{one}" for one in entries)
        self._roots = {
            "input": tuple(inner for one in entries for inner in shapes.question(one)),
            "data": shapes.rule_data(),
        }

    def find(self, node: Node) -> Place | None:
        """Where a reference leads; None if nothing is known of it, or nothing is there."""
        found = self._scope.path(node)
        if found is None:
            return None
        place = Place(root=found[0], path=(), shape=self._roots[found[0]])
        for step in found[1]:
            place = place.inside(step)
        return place if place.shape else None

    def missing(self, node: Node, more: tuple[Step, ...] = ()) -> str:
        """Why nothing can be where a reference, with ``more`` steps, leads; "" if something can."""
        found = self._scope.path(node)
        if found is None:
            return ""
        path = (*found[1], *more)
        own = len(more) + _own_steps(node)
        place = Place(root=found[0], path=(), shape=self._roots[found[0]])
        for at, step in enumerate(path):
            inner = place.inside(step)
            if not inner.shape:
                # What a name stands for is judged where the name is bound.
                return self.absent(inner, place) if at >= len(path) - own else ""
            place = inner
        return ""

    def absent(self, place: Place, parent: Place) -> str:
        """What to say of a place that no question has."""
        return f"{place} is not in {self.what(place)}; {self._instead(place.path[-1], parent)}"

    def what(self, place: Place) -> str:
        """What the place is part of, in words."""
        return f"a question of {self._asked}" if place.root == "input" else "the data of a tenant"

    def never(self, place: Place, wanted: frozenset[str], how: str) -> str:
        """What to say of a place that is used as something it never is."""
        suited = place.suited(wanted)
        hint = f"; did you mean {' or '.join(str(one) for one in suited)}?" if suited else "."
        return f"{place} is {how}, but in {self.what(place)} it is {shapes.described(place.shape)}{hint}"

    def unlisted(self, place: Place, others: Sequence[Node]) -> str:
        """What to say if the schema lists the values of a place and none of these literals is one; else ""."""
        listed = shapes.values(place.shape)
        said = [one for node in others if (one := literal(self._scope.expression(node))) is not None]
        if listed is None or not said or len(said) < len(others) or any(value in listed for (value,) in said):
            return ""
        first = said[0][0]
        near = shapes.nearest(first, listed) if isinstance(first, str) else ""
        hint = f"; did you mean {json.dumps(near)}?" if near else "."
        wrong = " or ".join(json.dumps(value, ensure_ascii=False) for (value,) in said)
        return f"{place} is never {wrong}; in {self.what(place)} it is {shapes.described(place.shape)}{hint}"

    def _instead(self, step: Step, parent: Place) -> str:
        names = shapes.keys(parent.shape)
        if isinstance(step, str):
            if near := shapes.nearest(step, names):
                return f"did you mean {parent.inside(near)}?"
            if "array" in shapes.kinds(parent.shape):
                return f"{parent} is a list: write `{json.dumps(step, ensure_ascii=False)} in {parent}`."
            elsewhere = shapes.places(self._roots["input"], step) if parent.root == "input" and names else []
            if elsewhere:
                return f"did you mean {' or '.join(shapes.written('input', one) for one in elsewhere[:3])}?"
            for path in shapes.chosen(parent.shape, step) if parent.root == "input" else ():
                inside = shapes.written("input", (*parent.path, *path))
                return f"{parent} has {', '.join(names)}; among {parent.inside(path[0])} it is {inside}."
        return f"{parent} has {', '.join(names)}." if names else f"{parent} is {shapes.described(parent.shape)}."


def literal(node: Node) -> tuple[str | int | float | bool | None] | None:
    """The value of a literal, in a tuple because it may be null; None for what is no literal."""
    kind = next(iter(node))
    return (node[kind]["value"],) if kind in LITERALS else None


def references(tree: object) -> Iterator[Node]:
    """Every reference as a whole, then those in its computed keys, in the order of the text."""
    if isinstance(tree, list):
        for one in tree:
            yield from references(one)
    elif isinstance(tree, dict):
        if "RefDot" not in tree and "RefBrack" not in tree:
            for one in tree.values():
                yield from references(one)
            return
        yield tree
        inside: Node = tree
        while (below := step_of(inside)) is not None:
            yield from references(inside.get("RefBrack", {}).get("index"))
            inside = below[1]
        yield from references(inside)


def line_of(node: Node) -> int:
    """The line an expression stands on; of a reference, its last step."""
    inner = next(iter(node.values()))
    line: int = inner["field"][0]["line"] if "field" in inner else inner["span"]["line"]
    return line


def _own_steps(node: Node) -> int:
    count = 0
    while (below := step_of(node)) is not None:
        count, node = count + 1, below[1]
    return count
