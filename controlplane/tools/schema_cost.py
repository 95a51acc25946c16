"""What checking one value against a JSON Schema may cost, computed before anything is checked.

Applicators that meet at one place of the value (anyOf in allOf, a ``$ref`` in both, two recursions into one member)
multiply, so that a schema of 3 KB can take hours. Here every subschema is counted as often as it can be applied to one
value; a recursion is fine while it enters each member once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from controlplane.runs.bounds import LEVELS_MOST
from controlplane.workflows.problem_values import child

COST_MOST = 10_000
"""Subschemas that may be applied to one value."""
_STEPS_MOST = 300
_SAME = {"not", "if", "then", "else"}
_SAME_LISTS = {"allOf", "anyOf", "oneOf"}
_SAME_MAPS = {"dependentSchemas", "dependencies"}
_MEMBERS = {"propertyNames", "unevaluatedProperties"}
_ITEMS = {"contains", "unevaluatedItems"}
_REST = {"additionalProperties": "member", "items": "item", "additionalItems": "item"}
_FIX = "have fewer alternatives inside one another, tell them apart by `type` and `required`, or describe less"

Label = tuple[str, str | int | None]
"""Where in a value a subschema is applied: a member or an item by name or index, or (``None``) any of them.
``other member`` and ``other item`` leave out those in ``_Node.but``."""


class SchemaTooCostly(ValueError):
    """``pointer`` is the place in the schema; the message says what and how to mend it."""

    def __init__(self, pointer: str, why: str, fix: str) -> None:
        super().__init__(f"{pointer or '/'}: {why}; {fix}")
        self.pointer, self.why, self.fix = pointer, why, fix


@dataclass(slots=True, eq=False)
class _Node:
    pointer: str
    number: int
    low: int
    same: list[_Node] = field(default_factory=list)
    members: list[tuple[Label, _Node]] = field(default_factory=list)
    but: list[Label] = field(default_factory=list)
    """What this node's own ``additionalProperties`` or ``items`` leaves out."""
    cost: int = 0
    recursive: bool = False
    done: bool = False
    labels: Counter[Label] | None = None

    def targets(self) -> Iterator[_Node]:
        yield from self.same
        yield from (node for _, node in self.members)


def check_cost(schema: Any) -> int:
    """What one value may cost. Raises ``SchemaTooCostly``, also for what cannot be told."""
    return _Walk(schema).node(schema, "", 0).cost


class _Walk:
    """Tarjan's components; a component is costed once all that it leads to is."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._nodes: dict[int, _Node] = {}
        self._open: list[_Node] = []
        self._anchors: dict[str, Any] | None = None
        said = root.get("$schema", "2020-12") if isinstance(root, dict) else ""
        self._knows_prefixes = "2020-12" in str(said)

    def node(self, schema: Any, pointer: str, steps: int) -> _Node:
        known = self._nodes.get(id(schema)) if isinstance(schema, dict) else None
        if known is not None:
            return known
        if steps > _STEPS_MOST:
            raise SchemaTooCostly(pointer, f"subschemas lead on more than {_STEPS_MOST} times", "flatten it")
        node = _Node(pointer, len(self._nodes), len(self._nodes))
        if not isinstance(schema, dict):
            node.cost, node.done = 1, True
            return node
        self._nodes[id(schema)] = node
        self._open.append(node)
        for label, target, where in self._edges(schema, pointer, node):
            found = self.node(target, where, steps + 1)
            if label is None:
                node.same.append(found)
            else:
                node.members.append((label, found))
            if not found.done:
                node.low = min(node.low, found.low)
        if node.low == node.number:
            at = self._open.index(node)
            component = self._open[at:]
            del self._open[at:]
            _settle(component)
        return node

    def _edges(self, schema: dict[str, Any], pointer: str, node: _Node) -> Iterator[tuple[Label | None, Any, str]]:
        # What unevaluated… leaves over is found by applying everything beside it a second time.
        twice = 2 if {"unevaluatedProperties", "unevaluatedItems"} & schema.keys() else 1
        if schema is not self._root:
            _refuse_base(schema, pointer)
        for key, value in schema.items():
            at = child(pointer, key)
            if key in ("$dynamicRef", "$recursiveRef"):
                raise SchemaTooCostly(at, f"what {key} leads to cannot be counted", "use $ref")
            if key == "$ref" and isinstance(value, str):
                yield from [(None, *self._referred(value, at))] * twice
            elif key in _SAME:
                yield from [(None, value, at)] * twice
            elif key in _SAME_LISTS and isinstance(value, list):
                yield from ((None, one, child(at, index)) for index, one in enumerate(value) for _ in range(twice))
            elif key in _SAME_MAPS and isinstance(value, dict):
                applied = [(name, one) for name, one in value.items() if isinstance(one, dict)]
                yield from ((None, one, child(at, name)) for name, one in applied for _ in range(twice))
            elif key == "properties" and isinstance(value, dict):
                node.but += [("member", name) for name in value]
                yield from ((("member", name), one, child(at, name)) for name, one in value.items())
            elif key == "patternProperties" and isinstance(value, dict):
                yield from ((("member", None), one, child(at, name)) for name, one in value.items())
            elif key in ("prefixItems", "items") and isinstance(value, list):
                if key == "items" or self._knows_prefixes:
                    node.but += [("item", index) for index in range(len(value))]
                yield from ((("item", index), one, child(at, index)) for index, one in enumerate(value))
            elif key in _MEMBERS:
                yield ("member", None), value, at
            elif key in _ITEMS:
                yield ("item", None), value, at
            elif key in _REST:
                yield (f"other {_REST[key]}", None), value, at

    def _referred(self, reference: str, at: str) -> tuple[Any, str]:
        base = self._root.get("$id") if isinstance(self._root, dict) else None
        address, _, fragment = reference.partition("#")
        if address and address != str(base).rstrip("#"):
            raise SchemaTooCostly(at, "a reference may not leave the document", "put it under $defs: #/$defs/NAME")
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            return self._anchor(fragment, at), at
        found = self._root
        for part in fragment.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(name)] if isinstance(found, list) else found[name]
            except (LookupError, ValueError, TypeError):
                raise SchemaTooCostly(at, f"nothing is at {reference}", "refer to #/$defs/NAME") from None
            if isinstance(found, dict):
                _refuse_base(found, fragment)
        return found, fragment

    def _anchor(self, name: str, at: str) -> Any:
        if self._anchors is None:
            self._anchors = {}
            stack = [self._root]
            while stack:
                value = stack.pop()
                if isinstance(value, dict) and isinstance(anchor := value.get("$anchor"), str):
                    if anchor in self._anchors:
                        raise SchemaTooCostly(at, f"there are two $anchor {anchor!r}", "refer to #/$defs/NAME")
                    self._anchors[anchor] = value
                if isinstance(value, dict | list):
                    stack.extend(value.values() if isinstance(value, dict) else value)
        if name not in self._anchors:
            raise SchemaTooCostly(at, f"there is no $anchor {name!r}", "refer to #/$defs/NAME")
        return self._anchors[name]


def _refuse_base(schema: dict[str, Any], pointer: str) -> None:
    for key in ("$id", "id"):
        if isinstance(schema.get(key), str):
            why = f"an {key} inside a schema changes what references mean"
            raise SchemaTooCostly(child(pointer, key), why, "leave it out and refer to #/$defs/NAME")


def _settle(component: list[_Node]) -> None:
    """Give a component its cost. Raises for one that grows with each level of a value."""
    first = component[0]
    recursive = len(component) > 1 or any(target is first for target in first.targets())
    inside = {id(node) for node in component} if recursive else set()
    cost = 0
    for node in component:
        if recursive and _width(_labels(node, inside, set())) > 1:
            why = "recursion enters one member of a value more than once, so each level multiplies the work"
            raise SchemaTooCostly(node.pointer, why, "recurse from one place only")
        cost += 1
        for target in node.targets():
            if id(target) not in inside:
                # Each level of the value enters a recursion that follows a recursion anew.
                cost += target.cost * (LEVELS_MOST if recursive and target.recursive else 1)
    if cost > COST_MOST:
        why = f"one value would be held against {_shown(cost)} subschemas; at most {COST_MOST}"
        raise SchemaTooCostly(first.pointer, why, _FIX)
    leads_on = any(target.recursive for node in component for target in node.targets())
    for node in component:
        node.cost, node.recursive, node.done = cost, recursive or leads_on, True


def _labels(node: _Node, inside: set[int], above: set[int]) -> Counter[Label]:
    """How often applying ``node`` to a value recurses into each member of it."""
    if node.labels is not None:
        return node.labels
    if id(node) in above:
        why = "it refers to itself without going into a member of the value, so checking has no end"
        raise SchemaTooCostly(node.pointer, why, "recurse through properties or items")
    labels: Counter[Label] = Counter()
    for label, target in node.members:
        if id(target) in inside:
            kind = label[0].removeprefix("other ")
            labels[kind, label[1]] += 1
            if kind != label[0]:
                labels.subtract(left for left in node.but if left[0] == kind)
    for target in node.same:
        if id(target) in inside:
            labels.update(_labels(target, inside, above | {id(node)}))
    node.labels = labels
    return labels


def _width(labels: Counter[Label]) -> int:
    """The most recursions into one member; a value is an object or an array, never both."""
    widths = [0]
    for kind in ("member", "item"):
        named = (count for (one, name), count in labels.items() if one == kind and name is not None)
        widths.append(labels[kind, None] + max(0, *named, 0))
    return max(widths)


def _shown(cost: int) -> str:
    return str(cost) if cost < 1_000_000 else "millions of"
