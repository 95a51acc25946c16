"""``data.json``: read strictly and held against the closed schema ``policies/schemas/tenants.json``.

A key that no rule reads would otherwise change nothing without a word, and a "false" in quotes would grant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import jsonschema_rs

from controlplane.authorization import shapes
from controlplane.authorization.shapes import Shape

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')

_PATTERNED = ("tools", "data", "egress", "network", "models")
_BY_PORT = ("egress", "network")

Pointer = tuple[str | int, ...]


def read(directory: Path, wrong: list[str]) -> dict[str, Any]:
    """The data of one policy directory; findings, as ``file:line: …``, are added to ``wrong``. Empty if unusable."""
    path = directory / "data.json"
    name = f"{directory.name}/data.json"
    if not path.is_file():
        return {}
    try:
        text = path.read_text("utf-8")
        data = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        # Numbers past every float and broken \\u escapes, which the engine would not take.
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except (OSError, ValueError, RecursionError) as problem:
        wrong.append(f"{name}:{getattr(problem, 'lineno', 1)}: {problem}")
        return {}
    if not isinstance(data, dict) or not isinstance(data.get("tenants", {}), dict):
        wrong.append(f'{name}:1: must be an object like {{"tenants": {{"default": {{…}}}}}}.')
        return {}
    try:
        found = list(_findings(data))
    except ValueError as problem:  # nested deeper than the schema's reader goes
        wrong.append(f"{name}:1: {problem}")
        return {}
    lines = _lines(text) if found else {}
    placed = sorted((lines.get(where, 1), problem) for where, problem in found)
    wrong.extend(f"{name}:{line}: {problem}" for line, problem in placed)
    return data


def idle(directory: Path, own: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[str]:
    """Each `false` of one directory's data that forbids nothing, because another key of the merged table grants it.

    ``own`` and ``merged`` are data that ``read`` had no finding in.
    """
    lines: dict[Pointer, int] = {}
    for tenant, tables in own.get("tenants", {}).items():
        for table in _PATTERNED:
            granted = [key for key, value in merged["tenants"][tenant].get(table, {}).items() if value]
            for name in (key for key, value in tables.get(table, {}).items() if value is False):
                still = next((key for key in granted if _covers(key, name, table)), None)
                if still is None:
                    continue
                where = ("tenants", tenant, table, name)
                lines = lines or _lines((directory / "data.json").read_text("utf-8"))
                yield (
                    f"{directory.name}/data.json:{lines.get(where, 1)}: {_pointer(where)} forbids nothing while "
                    f"{json.dumps(still)} grants it: set that to false and list what may be, or write a rule."
                )


def _covers(pattern: str, name: str, table: str) -> bool:
    if pattern == "*" and table not in _BY_PORT:
        return True
    if "*" not in pattern or "*" in name:
        return False
    parts = (".*" if one == "**" else "[^.]*" if one == "*" else re.escape(one) for one in re.split(r"(\*+)", pattern))
    return re.fullmatch("".join(parts), name) is not None


@cache
def _validator() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(dict(shapes.document("tenants.json")))


def _findings(data: dict[str, Any]) -> Iterator[tuple[Pointer, str]]:
    for problem in _validator().iter_errors(data):
        where: Pointer = tuple(problem.instance_path)
        shape: Shape = (shapes.document("tenants.json"),)
        for step in where:
            shape = shapes.below(shape, step)
        unexpected: Sequence[str] = getattr(problem.kind, "unexpected", ())
        for key in unexpected:
            known = shapes.keys(shape)
            near = shapes.nearest(key, known)
            hint = f"did you mean {json.dumps(near)}?" if near else f"there is {', '.join(known)}."
            yield (*where, key), f"{_pointer((*where, key))} is nothing that policy reads; {hint}"
        if unexpected:
            continue
        if isinstance(problem.kind, jsonschema_rs.ValidationErrorKind.PropertyNames):
            named = (*where, str(problem.kind.error.instance))
            yield named, f"{_pointer(named)} names no tenant: they are lower-case letters, digits and dashes."
        else:
            yield where, f"{_pointer(where)} must be {_wanted(where, shape)}, not {_shown(problem.instance)}."


def _wanted(where: Pointer, shape: Shape) -> str:
    if len(where) == 4 and where[2] in _BY_PORT:
        return "true, false or a list of ports from 1 to 65535, such as [443]"
    if len(where) == 5 and where[2] in _BY_PORT:
        return "a port, a number from 1 to 65535"
    if len(where) > 2 and where[2] == "caps":
        return "a number of at least 0" + (" without a fraction" if where[-1] == "steps" else "")
    if len(where) == 4 and where[2] == "secrets":
        return 'an object from tools to lists of hosts, such as {"tracker.ticket": ["api.example.com"]}'
    if len(where) == 5 and where[2] == "secrets":
        return 'a list of hosts, such as ["api.example.com"]'
    return shapes.described(shape)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _pointer(where: Pointer) -> str:
    return "/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in where)


def _lines(text: str) -> dict[Pointer, int]:
    """The line of each key and item of a document that is valid JSON."""
    lines: dict[Pointer, int] = {}
    path: list[str | int] = []
    # Per open bracket: does a key come next?
    key_next: list[bool] = []
    for match in _TOKEN.finditer(text):
        piece = match[0]
        if piece == ":":
            continue
        if piece in ("}", "]"):
            path.pop()
            key_next.pop()
        elif piece == ",":
            last = path[-1]
            if isinstance(last, int):
                path[-1] = last + 1
            else:
                key_next[-1] = True
        elif path and key_next[-1]:
            path[-1], key_next[-1] = json.loads(piece), False
            lines[tuple(path)] = text.count("\n", 0, match.start()) + 1
        else:
            lines.setdefault(tuple(path), text.count("\n", 0, match.start()) + 1)
            if piece in ("{", "["):
                path.append("" if piece == "{" else 0)
                key_next.append(piece == "{")
    return lines


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {json.dumps(key[:80], ensure_ascii=False)} is written twice in one object.")
        made[key] = value
    return made


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON.")
