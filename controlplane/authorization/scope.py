"""What the names in a rule certainly stand for: only where one thing binds them, so that a guess never is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from controlplane.authorization.shapes import Step
from controlplane.authorization.syntax import Node, nodes, rule_name

_DEEPEST = 8


@dataclass(frozen=True, kw_only=True)
class Scope:
    """One rule's names. ``given`` are ``name := expression``, ``members`` are ``some name in collection``."""

    given: dict[str, Node] = field(default_factory=dict)
    members: dict[str, Node] = field(default_factory=dict)

    def expression(self, node: Node) -> Node:
        """What ``node`` stands for if it is a name bound by one ``:=``; else ``node`` itself."""
        for _ in range(_DEEPEST):
            name = node.get("Var", {}).get("value")
            if name not in self.given:
                break
            node = self.given[name]
        return node

    def path(self, node: Node, depth: int = 0) -> tuple[str, tuple[Step, ...]] | None:
        """``("input", ("args", None))`` for a reference that begins at ``input`` or ``data``; else None."""
        steps: list[Step] = []
        while (below := step_of(node)) is not None:
            step, node = below
            steps.append(step)
        steps.reverse()
        name = node.get("Var", {}).get("value")
        if name in ("input", "data"):
            return name, tuple(steps)
        if depth == _DEEPEST or name is None:
            return None
        if name in self.given:
            found = self.path(self.given[name], depth + 1)
            return found and (found[0], (*found[1], *steps))
        if name in self.members:
            found = self.path(self.members[name], depth + 1)
            return found and (found[0], (*found[1], None, *steps))
        return None


def step_of(node: Node) -> tuple[Step, Node] | None:
    """The last step of a reference and what it is taken from; None for what is no reference with a step."""
    if "RefDot" in node:
        return node["RefDot"]["field"][1], node["RefDot"]["refr"]
    if "RefBrack" not in node:
        return None
    index, refr = node["RefBrack"]["index"], node["RefBrack"]["refr"]
    literal = next(iter(index.values()))
    if "String" in index or "RawString" in index:
        return literal["value"], refr
    if "Number" in index and isinstance(literal["value"], int):
        return literal["value"], refr
    return None, refr


def scopes(tree: Node, text: str) -> Iterator[tuple[Node, Scope]]:
    """Each rule of a file with what its names stand for."""
    named = Counter(rule_name(rule).split(".")[0] for rule in tree["rules"])
    constants = {name: node for rule in tree["rules"] if named[name := rule_name(rule)] == 1 and (node := _value(rule))}
    taken = set(named) | {_imported(one, text) for one in tree["imports"]}
    raw = text.encode()
    for rule in tree["rules"]:
        bound, given, members = _bound(rule, raw)
        # A name of the file means that elsewhere in the rule; with several bodies each has its own names.
        is_plain = len(rule.get("Spec", {}).get("bodies", ())) <= 1
        local = {name for name, times in bound.items() if times == 1 and name not in taken and is_plain}
        yield (
            rule,
            Scope(
                given={
                    **{name: node for name, node in constants.items() if name not in bound},
                    **{name: node for name, node in given.items() if name in local},
                },
                members={name: node for name, node in members.items() if name in local},
            ),
        )


def _value(rule: Node) -> Node | None:
    if "Spec" not in rule or rule["Spec"]["bodies"]:
        return None
    head = rule["Spec"]["head"].get("Compr")
    if head is None or "Var" not in head["refr"] or head["assign"] is None:
        return None
    value: Node = head["assign"]["value"]
    return value


def _imported(one: Node, text: str) -> str:
    if one.get("as"):
        return _slice(text.encode(), one["as"])
    last = step_of(one["refr"])
    return str(last[0]) if last else str(one["refr"].get("Var", {}).get("value", ""))


def _bound(rule: Node, raw: bytes) -> tuple[Counter[str], dict[str, Node], dict[str, Node]]:
    bound: Counter[str] = Counter()
    given: dict[str, Node] = {}
    members: dict[str, Node] = {}
    for kind, node in nodes(rule):
        if kind == "AssignExpr":
            for side in (node["lhs"],) if node["op"] == "ColEq" else (node["lhs"], node["rhs"]):
                bound.update(_variables(side))
            if node["op"] == "ColEq" and "Var" in node["lhs"]:
                given[node["lhs"]["Var"]["value"]] = node["rhs"]
        elif kind == "SomeIn":
            for part in ("key", "value"):
                bound.update(_variables(node[part] or {}))
            if "Var" in node["value"]:
                members[node["value"]["Var"]["value"]] = node["collection"]
        elif kind == "Every":
            bound.update(_slice(raw, node[part]) for part in ("key", "value") if node[part])
            members[_slice(raw, node["value"])] = node["domain"]
        elif kind == "SomeVars":
            bound.update(_slice(raw, span) for span in node["vars"])
        elif kind == "Func":
            for argument in node["args"]:
                bound.update(_variables(argument))
        elif kind == "RefBrack":
            bound.update(_variables(node["index"]))
    return bound, given, members


def _variables(pattern: Node) -> Iterator[str]:
    for kind, inner in pattern.items():
        if kind == "Var":
            yield inner["value"]
        elif kind in ("Array", "Set"):
            for one in inner["items"]:
                yield from _variables(one)
        elif kind == "Object":
            for _, key, value in inner["fields"]:
                yield from _variables(key)
                yield from _variables(value)


def _slice(raw: bytes, span: Node) -> str:
    return raw[span["start"] : span["end"]].decode("utf-8", "replace")
