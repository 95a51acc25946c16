"""What a person types made what the API takes: workflows, inputs, and short names of runs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockade.cli.exits import Exit, Refusal

if TYPE_CHECKING:
    from stockade.client import Client
    from stockade.client.models import Problem, Run

PREFIX_PAGE = 200
_MISSING = re.compile(r'"([A-Za-z_][A-Za-z0-9_]*)" is a required property\Z')


def workflow(text: str) -> dict[str, Any] | str:
    """A workflow file's content, ``-`` for standard input, or ``name@version`` as it is."""
    if text == "-":
        return _object(sys.stdin.read(), "standard input")
    path = Path(text)
    if path.is_file():
        return _object(path.read_text(encoding="utf-8", errors="strict"), text)
    if "@" in text and "/" not in text:
        return text
    raise Refusal(
        Exit.NOT_FOUND, "no such workflow file", where=text, why="it is neither a file nor name@version",
        fix="stockade workflow ls",
    )  # fmt: skip


def run_input(parts: Sequence[str]) -> Any:
    """``key=value`` (JSON, else text), ``key=@file.json``, ``@file.json`` and ``-`` together; ``{}`` without any."""
    whole: Any = {}
    for given in parts:
        if given == "-" or given.startswith("@"):
            text = sys.stdin.read() if given == "-" else _file(given[1:])
            value = _json(text, "standard input" if given == "-" else given[1:])
            whole = {**whole, **value} if isinstance(value, dict) and isinstance(whole, dict) else value
            continue
        key, equals, value = given.partition("=")
        if not equals or not key:
            raise Refusal(Exit.USAGE, "not an input", where=given, fix="--input key=value, --input @file.json or -")
        if not isinstance(whole, dict):
            raise Refusal(Exit.USAGE, "key=value needs an object", where=given, fix="pass the whole input in one file")
        whole[key] = _json(_file(value[1:]), value[1:]) if value.startswith("@") else _value(value)
    return whole


def remedy(problem: Problem, parts: Sequence[str]) -> str:
    """What to type for a fault of the input: the server knows the schema, not how a value was given."""
    name = problem.pointer.removeprefix("/").partition("/")[0]
    for given in parts:
        key, equals, text = given.partition("=")
        if equals and key == name and not text.startswith("@") and _value(text) != text:
            return f"{text} is read as JSON; for text write --input '{key}={json.dumps(text)}'"
    missing = _MISSING.match(problem.message)
    if missing:
        return f"--input {missing[1]}=VALUE"
    return problem.hint


def find_run(client: Client, name: str) -> str:
    """The id of ``@last``, a full id, or a unique prefix of an id's random part."""
    if name.startswith("run_") and len(name) >= 30:
        return name
    recent: list[Run] = client.runs(limit=PREFIX_PAGE).data
    if name == "@last":
        if not recent:
            raise Refusal(Exit.NOT_FOUND, "there is no run yet", where=name, fix="stockade run FILE")
        return recent[0].id
    wanted = name.removeprefix("run_")
    matches = [run.id for run in recent if run.id.removeprefix("run_").startswith(wanted)]
    if len(matches) == 1:
        return matches[0]
    why = f"{len(matches)} runs begin so" if matches else f"none of the last {PREFIX_PAGE} runs begins so"
    raise Refusal(Exit.NOT_FOUND, "no such run", where=name, why=why, fix="stockade ps")


def pairs(parts: Sequence[str], what: str) -> dict[str, str]:
    """``NAME=VALUE`` flags as a mapping."""
    found = {}
    for given in parts:
        key, equals, value = given.partition("=")
        if not equals or not key:
            raise Refusal(Exit.USAGE, f"not a {what}", where=given, fix=f"write it as NAME={what.upper()}")
        found[key] = value
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _file(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise Refusal(Exit.NOT_FOUND, "cannot read the file", where=name, why=error.strerror or str(error)) from None


def _json(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()):
            why = f"{error.msg.lower()}, but it ends there"
            fix = "close what is open: a ], } or quote"
            raise Refusal(Exit.USAGE, "not JSON", where=f"{source}:{error.lineno}", why=why, fix=fix) from None
        # As the decoder counts lines: by \n alone.
        line = text.split("\n")[error.lineno - 1]
        raise Refusal(
            Exit.USAGE, "not JSON", where=f"{source}:{error.lineno}:{error.colno}\n{line}\n{' ' * (error.colno - 1)}^",
            why=error.msg, fix="fix the JSON at the caret",
        ) from None  # fmt: skip


def _object(text: str, source: str) -> dict[str, Any]:
    value = _json(text, source)
    if not isinstance(value, dict):
        raise Refusal(Exit.USAGE, "a workflow is a JSON object", where=source, fix='start with {"stockade": "1", …}')
    return value
