"""What the closed JSON Schemas in ``policies/schemas`` say may stand at a path, for the static checks of a bundle.

A shape is the alternatives a place may have, each a schema object; the empty schema is anything, no alternative at
all is a place that does not exist. Only what these schemas use is read: ``$ref``, ``oneOf``, ``anyOf``, ``enum``,
``type``, ``properties``, ``additionalProperties`` and ``items``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import policies

SCHEMAS = Path(policies.__file__).parent / "schemas"
ENTRIES = ("workflow", "data", "tool", "secret", "egress", "model")

Shape = tuple[Mapping[str, Any], ...]
Step = str | int | None
"""One step of a path; None is a key that is computed."""

JSON_KINDS = frozenset({"string", "number", "boolean", "null", "object", "array"})
_DEEPEST_SEARCHED = 3


@cache
def question(entry: str) -> Shape:
    """What ``runtime.ENTRY`` is asked; ``entry`` is one of ``ENTRIES``. Raises: OSError, ValueError."""
    return _resolved(document(f"{entry}.json"))


@cache
def rule_data() -> Shape:
    """What a rule finds below ``data``: the platform's tables, and whatever else."""
    return ({"type": "object", "properties": {"tenants": document("tenants.json")["properties"]["tenants"]}},)


@cache
def document(name: str) -> Mapping[str, Any]:
    """One schema file. Raises: OSError, ValueError if the package is damaged."""
    schema: dict[str, Any] = json.loads((SCHEMAS / name).read_text("utf-8"))
    return schema


def below(shape: Shape, step: Step) -> Shape:
    """The shape one step further down; empty if nothing can be there."""
    return tuple(inner for one in shape for inner in _below(one, step))


def kinds(shape: Shape) -> frozenset[str]:
    """The JSON types a value of this shape may have; ``integer`` counts as ``number``."""
    return frozenset(kind for one in shape for kind in _kinds(one))


def values(shape: Shape) -> list[Any] | None:
    """Every value that may stand here, if the schema lists them."""
    listed: list[Any] = []
    for one in shape:
        if "enum" not in one:
            return None
        listed.extend(one["enum"])
    return listed


def keys(shape: Shape) -> list[str]:
    """The names that an object of this shape may have, in the schema's order; without those it may choose."""
    return list(dict.fromkeys(name for one in shape for name in one.get("properties", {})))


def written(root: str, path: tuple[Step, ...]) -> str:
    """``input.args.city.value`` as Rego writes it."""
    return root + "".join(
        f".{step}"
        if isinstance(step, str) and step.replace("_", "a").isalnum() and not step[0].isdigit()
        else f"[{json.dumps(step, ensure_ascii=False) if step is not None else '_'}]"
        for step in path
    )


def nearest(name: str, known: list[str]) -> str:
    """The one of ``known`` that ``name`` was probably meant to be; "" if none looks like it."""
    lower = {one.lower(): one for one in reversed(known)}
    found = get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)
    return lower[found[0]] if found else ""


def places(shape: Shape, name: str) -> list[tuple[Step, ...]]:
    """The paths below ``shape`` that end in ``name``, nearest first."""
    found: list[tuple[Step, ...]] = []
    level: list[tuple[tuple[Step, ...], Shape]] = [((), shape)]
    for _ in range(_DEEPEST_SEARCHED):
        following = [((*path, key), below(at, key)) for path, at in level for key in keys(at)]
        found.extend(path for path, _ in following if path[-1] == name)
        level = following
    return found


def chosen(shape: Shape, name: str) -> list[tuple[Step, ...]]:
    """Where ``name`` would be right below ``shape`` among names that callers choose, such as a tool's arguments."""
    found: list[tuple[Step, ...]] = []
    for key in keys(shape):
        inner = below(shape, key)
        if not keys(inner) and any(isinstance(one.get("additionalProperties"), Mapping) for one in inner):
            found.append((key, name, *(["value"] if "value" in keys(below(inner, name)) else [])))
    return found


def described(shape: Shape) -> str:
    """In words: ``a string``, ``an object with value, labels``, ``one of "step", "guest"``."""
    listed = values(shape)
    if listed:
        return f"one of {', '.join(json.dumps(one) for one in listed)}"
    names = keys(shape)
    return " or ".join(
        f"an object with {', '.join(names)}" if kind == "object" and names else KIND_WORDS[kind]
        for kind in sorted(kinds(shape))
    )


KIND_WORDS = {
    "string": "a string",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
    "set": "a set",
}


def _below(schema: Mapping[str, Any], step: Step) -> Iterator[Mapping[str, Any]]:
    if not schema:
        yield schema
        return
    may_be = _kinds(schema)
    if "object" in may_be and not isinstance(step, int):
        properties = schema.get("properties", {})
        rest = schema.get("additionalProperties", {})
        if step is None:
            for inner in (*properties.values(), rest):
                yield from _resolved(inner)
        else:
            yield from _resolved(properties.get(step, rest))
    if "array" in may_be and not isinstance(step, str):
        yield from _resolved(schema.get("items", {}))


def _kinds(schema: Mapping[str, Any]) -> frozenset[str]:
    if "enum" in schema:
        return frozenset(_kind_of(one) for one in schema["enum"])
    if "type" not in schema:
        return JSON_KINDS
    declared = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return frozenset("number" if one == "integer" else one for one in declared)


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, dict) else "array" if isinstance(value, list) else "number"


def _resolved(schema: Any) -> Shape:
    if schema is False:
        return ()
    if schema is True:
        return ({},)
    if "$ref" in schema:
        file, _, pointer = schema["$ref"].partition("#/")
        at: Any = document(f"{file.rpartition('/')[2]}.json")
        for part in pointer.split("/"):
            at = at[part]
        return _resolved(at)
    for several in ("oneOf", "anyOf"):
        if several in schema:
            return tuple(inner for one in schema[several] for inner in _resolved(one))
    return (schema,)
