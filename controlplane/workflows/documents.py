"""From bytes to a JSON object, strictly: what two parsers could read differently is refused."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from controlplane.workflows.problem_values import Problem, WorkflowInvalid, caret, child

MAX_DOCUMENT_BYTES = 1024 * 1024
MAX_JSON_DEPTH = 64


class _Refused(Exception):
    pass


def parse_document(raw: bytes) -> dict[str, Any]:
    """The JSON object in ``raw`` (UTF-8, at most 1 MiB, 64 levels deep).

    Raises:
        WorkflowInvalid: not strict JSON, a duplicate key, NaN, a NUL in a string, too large, too deep, no object.
    """
    if len(raw) > MAX_DOCUMENT_BYTES:
        _refuse("limit", f"the document has {len(raw):,} bytes; the limit is 1 MiB", "pass data by data:// address")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse("json", f"not UTF-8: byte {error.start} cannot be decoded", "send UTF-8 without a byte order mark")
    if _depth(text) > MAX_JSON_DEPTH:
        _refuse("limit", f"nested deeper than {MAX_JSON_DEPTH} levels", "flatten the document")
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer)
    except json.JSONDecodeError as error:
        line, column, excerpt = caret(text, error.pos)
        problem = Problem(
            pointer="", message=f"not JSON: {error.msg}", hint="fix the JSON at the caret", type="json",
            line=line, column=column, excerpt=excerpt,
        )  # fmt: skip
        raise WorkflowInvalid([problem]) from None
    except _Refused as error:
        _refuse("json", str(error), "write each key once and only finite numbers, as strict JSON asks")
    if not isinstance(document, dict):
        _refuse("schema", "a workflow is a JSON object", 'start with {"stockade": "1", "name": …, "steps": […]}')
    if problems := check_values(document):
        raise WorkflowInvalid(problems)
    return document


def refuse_constant(name: str) -> NoReturn:
    """For ``json.loads(…, parse_constant=…)``: NaN and the infinities are no JSON. Raises ``ValueError``."""
    raise ValueError(f"{name} is not JSON")


def check_values(value: Any, pointer: str = "") -> list[Problem]:
    """Values that cannot be stored or shown safely: NUL and lone surrogates (in keys too), infinite numbers."""
    problems: list[Problem] = []
    stack: list[tuple[str, Any]] = [(pointer, value)]
    while stack:
        where, item = stack.pop()
        if isinstance(item, str):
            if cause := _refuse_text(item):
                problems.append(Problem(pointer=where, message=cause, hint="remove it or encode it", type="json"))
        elif isinstance(item, float) and not math.isfinite(item):
            problems.append(
                Problem(pointer=where, message="a number is not finite", hint="write a smaller number", type="json")
            )
        elif isinstance(item, dict):
            for key, member in item.items():
                if cause := _refuse_text(key):
                    problems.append(Problem(pointer=where, message=f"a key has {cause}", hint="rename it", type="json"))
                else:
                    stack.append((child(where, key), member))
        elif isinstance(item, list):
            stack.extend((child(where, index), member) for index, member in enumerate(item))
    return problems


def _refuse_text(text: str) -> str | None:
    if "\x00" in text:
        return "a NUL character"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "a lone surrogate (broken \\u escape)"
    return None


def _depth(text: str) -> int:
    """Deepest bracket nesting outside strings; a scan, so hostile depth never reaches a recursive parser."""
    depth = deepest = 0
    inside = escaped = False
    for character in text:
        if inside:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                inside = False
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _Refused(f"the key {key[:80]!r} appears twice in one object")
        result[key] = value
    return result


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > 400:
        raise _Refused("an integer has more than 400 digits")
    return int(digits)


def _refuse(kind: str, message: str, hint: str) -> NoReturn:
    raise WorkflowInvalid([Problem(pointer="", message=message, hint=hint, type=kind)])
