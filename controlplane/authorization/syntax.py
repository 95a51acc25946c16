"""Walks the syntax tree regorus gives, so that nothing here parses Rego by pattern.

A node is ``{"Kind": {"span": {"line", "col", …}, …}}``; names are chains of ``RefDot`` over a ``Var``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from regorus import Engine

Node = dict[str, Any]
_WHERE = re.compile(r"^--> .*:(\d+):\d+$", re.MULTILINE)


def parse(path: str, text: str) -> Node:
    """The tree of one file. Raises: ValueError, as ``path:line: the parser's words``, if it is no Rego."""
    engine = Engine()
    try:
        engine.add_policy(path, text)
        tree: Node = json.loads(engine.get_ast_as_json())[0]["ast"]
    except RuntimeError as problem:
        said = plain(problem)
        where = _WHERE.search(said)
        raise ValueError(f"{path}:{where[1] if where else 1}: {said}") from None
    return tree


def plain(problem: BaseException) -> str:
    """The engine's words without the backtrace it appends."""
    return str(problem).split("Stack backtrace", 1)[0].strip()


def package_of(tree: Node) -> str:
    """``runtime.tool`` for ``package runtime.tool``."""
    return ".".join(name_of(tree["package"]["refr"]))


def nodes(tree: Any) -> Iterator[tuple[str, Node]]:
    """Every node with its kind, parents before children, in the order of the text."""
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            for kind, inner in one.items():
                if isinstance(inner, dict) and "span" in inner:
                    yield kind, inner
            waiting.extend(reversed(list(one.values())))
        elif isinstance(one, list):
            waiting.extend(reversed(one))


def name_of(expression: Node) -> list[str]:
    """``["time", "now_ns"]`` for ``time.now_ns``; the part before the first computed step otherwise."""
    fields: list[str] = []
    while True:
        if "RefDot" in expression:
            fields.append(expression["RefDot"]["field"][1])
            expression = expression["RefDot"]["refr"]
        elif "RefBrack" in expression:
            index = expression["RefBrack"]["index"]
            if "String" in index:
                fields.append(index["String"]["value"])
            else:
                fields.clear()
            expression = expression["RefBrack"]["refr"]
        elif "Var" in expression:
            return [expression["Var"]["value"], *reversed(fields)]
        else:
            return []


def rule_name(rule: Node) -> str:
    """The name a rule defines, for any kind of rule."""
    body = rule.get("Default") or rule["Spec"]["head"]
    head = body if "refr" in body else next(iter(body.values()))
    return ".".join(name_of(head["refr"]))


def rule_line(rule: Node) -> int:
    """The line a rule begins on."""
    line: int = next(iter(rule.values()))["span"]["line"]
    return line
