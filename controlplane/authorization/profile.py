"""The portable profile of Rego: what every engine evaluates alike, and what cannot reach outside the question.

Checked when a bundle is loaded. Time, counters and history are inputs, so a recorded decision replays exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from controlplane.authorization.syntax import Node, name_of, nodes, package_of, rule_line, rule_name

_REFUSED = re.compile(
    r"(http\.send|net\.lookup_ip_addr|opa\.runtime|time\.now_ns|trace|json\.match_schema|rego\.parse_module"
    r"|rego\.metadata\.\w+|(rand|uuid|io\.jwt|crypto|graphql)\.[\w.]+)"
)
_DENIES = ("deny", "refusals")


class PolicyInvalid(Exception):
    """A bundle that may not be loaded. ``findings`` are ``file:line: what is wrong and what to do``."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__("\n".join(findings))
        self.findings = findings


def findings(path: str, tree: Node, *, is_test: bool, roots: tuple[str, ...]) -> Iterator[str]:
    """What keeps a file out of a bundle. ``roots`` are the ``data`` paths, dotted, the file may read."""
    package = package_of(tree)
    for kind, node in nodes(tree):
        line = node["span"]["line"]
        if kind == "Call":
            yield from _call(f"{path}:{line}", node)
        elif kind in ("RefDot", "RefBrack", "Var"):
            name = name_of({kind: node})
            if name[:1] == ["data"] and len(name) > 1 and not is_test and not _within(name[1:], (*roots, package)):
                yield f"{path}:{line}: data.{'.'.join(name[1:])} is outside what this file may read ({_listed(roots)})."
        elif kind in ("InterpolatedString", "TemplateString"):
            yield f"{path}:{line}: string interpolation is not portable; use sprintf."
    if not is_test:
        if package.startswith("tenant."):
            yield from _other_denials(path, tree)
        yield from _computed(path, tree)
        yield from _with(path, tree)
        yield from _negated(path, tree)


def _call(where: str, node: Node) -> Iterator[str]:
    name = ".".join(name_of(node["fcn"]))
    if _REFUSED.fullmatch(name):
        yield f"{where}: {name} is refused: policy may use only its input and data. Put the value into the input."
    if name == "numbers.range" and not all("Number" in one for one in node["params"]):
        yield f"{where}: numbers.range needs literal bounds, or an input decides how long it runs."


def _other_denials(path: str, tree: Node) -> Iterator[str]:
    # A complete `deny` beside partial ones would contradict the file that makes it a set, or empty it.
    for rule in tree["rules"]:
        is_partial = "Spec" in rule and "Set" in rule["Spec"]["head"]
        if rule_name(rule).split(".")[0] == "deny" and not is_partial:
            yield f"{path}:{rule_line(rule)}: write `deny contains {{…}} if {{…}}`; deny is a set of reasons."


def _computed(path: str, tree: Node) -> Iterator[str]:
    # `data[x]` and `x := data` reach every root, whatever the names say.
    named: set[int] = set()
    for kind, node in nodes(tree):
        if kind == "RefDot" or (kind == "RefBrack" and "String" in node["index"]):
            named.add(node["refr"].get("Var", {}).get("eidx", -1))
        elif kind == "Var" and node["value"] == "data" and node["eidx"] not in named:
            yield f"{path}:{node['span']['line']}: name what you read of data, as in data.tenants[input.tenant]."


def _with(path: str, tree: Node) -> Iterator[str]:
    waiting: list[object] = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if one.get("with_mods"):
                yield f"{path}:{one['span']['line']}: `with` is for tests only; move it into a _test.rego file."
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _negated(path: str, tree: Node) -> Iterator[str]:
    # `input.x != …` is undefined, hence no denial, when the field is missing: `not input.x == …` denies then.
    for rule in tree["rules"]:
        if "Spec" not in rule or rule_name(rule) not in _DENIES:
            continue
        for body in rule["Spec"]["bodies"]:
            for statement in body["query"]["stmts"]:
                comparison = statement["literal"].get("Expr", {}).get("expr", {}).get("BoolExpr")
                if comparison and comparison["op"] == "Ne" and _reads_input(comparison):
                    yield (
                        f"{path}:{comparison['span']['line']}: {rule_name(rule)} (line {rule_line(rule)}) compares "
                        "input with `!=`, which denies nothing if the field is missing; write `not input… == …`."
                    )


def _reads_input(comparison: Node) -> bool:
    return any(name_of(comparison[side])[:1] == ["input"] for side in ("lhs", "rhs"))


def _within(name: list[str], roots: tuple[str, ...]) -> bool:
    parts = [root.split(".") for root in roots]
    # A reference is walked from its whole to its parts: `data.runtime` inside `data.runtime.tool` is no reading.
    return any(name[: len(root)] == root or root[: len(name)] == name for root in parts)


def _listed(roots: tuple[str, ...]) -> str:
    return ", ".join(f"data.{root}" for root in roots)
