"""From an authorized call's arguments to the HTTP request a node makes. Arguments never choose the host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from controlplane.tools.spec import HttpSpec
from controlplane.workflows.problem_values import Problem, child
from dataplane.protocol import HttpCall


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where the request goes, as policy judges it. ``path`` is percent-encoded, without the query."""

    scheme: str
    host: str
    port: int
    method: str
    path: str

    def to_json(self) -> dict[str, Any]:
        return {
            "scheme": self.scheme,
            "host": self.host,
            "port": self.port,
            "method": self.method,
            "path": self.path,
        }


class ArgumentsRefused(Exception):
    """The arguments fit the schema but cannot be put into the request; ``problems`` says which and why."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


def resolve(spec: HttpSpec, args: dict[str, Any]) -> tuple[HttpCall, Destination]:
    """The request, without secrets, and its destination. Raises: ArgumentsRefused."""
    parts = urlsplit(spec.url)
    in_path = spec.path_arguments()
    problems = [problem for name in in_path if (problem := _path_problem(name, args)) is not None]
    problems += [problem for name in spec.query if (problem := _query_problem(name, args)) is not None]
    rest = {name: value for name, value in args.items() if name not in in_path and name not in spec.query}
    if rest and spec.body is None:
        problems += [_refused(name, "the tool has no place for it", "remove it") for name in sorted(rest)]
    if problems:
        raise ArgumentsRefused(problems)
    path = parts.path.format_map({name: quote(_text(args[name]), safe="") for name in in_path}) or "/"
    if any(segment in (".", "..") for segment in path.split("/")):
        # Dots are not percent-encoded, and a client would let them climb to another path.
        raise ArgumentsRefused(
            [_refused(name, "makes a path with . or .. in it", "name one thing") for name in in_path]
        )
    pairs = [(name, _text(one)) for name in spec.query if name in args for one in _several(args[name])]
    query = "&".join(text for text in (parts.query, urlencode(pairs)) if text)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    call = HttpCall(
        method=spec.method,
        url=f"{parts.scheme}://{parts.netloc}{path}{'?' + query if query else ''}",
        headers=dict(spec.headers),
        body=rest if spec.body == "json" else None,
        timeout_seconds=spec.timeout,
    )
    return call, Destination(scheme=parts.scheme, host=host, port=port, method=spec.method, path=path)


def _path_problem(name: str, args: dict[str, Any]) -> Problem | None:
    if name not in args:
        return _refused(name, "is part of the address and missing", "give it")
    if not isinstance(args[name], str | int | float | bool):
        return _refused(name, "is part of the address and must be text or a number", "give one value")
    if args[name] == "" or "\x00" in str(args[name]):
        return _refused(name, "is part of the address and is empty or has a NUL", "give a value")
    return None


def _query_problem(name: str, args: dict[str, Any]) -> Problem | None:
    if name in args and not all(isinstance(one, str | int | float | bool) for one in _several(args[name])):
        return _refused(name, "is in the query string and must be text, a number, or a list of these", "simplify it")
    return None


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _refused(name: str, message: str, hint: str) -> Problem:
    return Problem(pointer=child("", name), message=f"{name} {message}", hint=hint, type="schema")
