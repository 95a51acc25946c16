"""The registered tools, in memory; the ``tool`` table is what a restart reads.

tool = registry.get(tenant, "tickets.create")        # None: no such tool
problems = check_args(tool, args)                    # before policy is asked
call, destination = resolve_http(tool, args)         # for policy's question, then for the node
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import select

from controlplane.errors import ApiError, field_problem, invalid_tool, not_found
from controlplane.runs.journal import Journal
from controlplane.store import Store, Write, canonical, upsert
from controlplane.tables import ToolRow
from controlplane.times import rfc3339
from controlplane.tools.builtin import BUILTIN
from controlplane.tools.requests import ArgumentsRefused, Destination, resolve
from controlplane.tools.schemas import Schema, SchemaInvalid
from controlplane.tools.spec import ToolSpec, digest_of
from controlplane.workflows.problem_values import Problem
from dataplane.protocol import HttpCall

__all__ = ["ArgumentsRefused", "Destination", "Tool", "ToolRegistry", "check_args", "check_output", "match"]
_BUILTIN_PREFIX = "builtin."


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One version of a tool. ``http`` has the parsed spec of an HTTP tool; a builtin has none."""

    name: str
    digest: str
    kind: str
    effect: str
    description: str
    spec: dict[str, Any]
    http: ToolSpec | None
    arguments: Schema = field(repr=False)
    output: Schema | None = field(repr=False)
    created_ns: int | None = None

    @property
    def builtin_name(self) -> str:
        """``noop``, ``artifact.read``, ``artifact.write``: what ``BuiltinCall.name`` is."""
        return self.name.removeprefix(_BUILTIN_PREFIX)

    def to_json(self) -> dict[str, Any]:
        """As ``GET /v1/tools`` shows it."""
        shown = {"name": self.name, "digest": self.digest, **self.spec}
        return shown | {"created_at": rfc3339(self.created_ns)}


class ToolRegistry:
    """Reads are from memory; ``load`` once before serving. ``put`` and ``delete`` are durable on return."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._tools: dict[tuple[str, str], Tool] = {}
        self._builtin = {name: _builtin(name, spec) for name, spec in BUILTIN.items()}

    async def load(self) -> None:
        """Read the table."""
        rows = await self._store.read(lambda session: session.exec(select(ToolRow)).all())
        for row in rows:
            self._tools[row.tenant, row.name] = _http(
                row.name, ToolSpec.model_validate(json.loads(row.spec)), row.created_ns
            )

    def get(self, tenant: str, name: str) -> Tool | None:
        """The current version of a tool."""
        return self._builtin.get(name) or self._tools.get((tenant, name))

    def list(self, tenant: str) -> list[Tool]:
        """All the tenant may name, sorted; builtins included."""
        own = [tool for (owner, _), tool in self._tools.items() if owner == tenant]
        return sorted([*self._builtin.values(), *own], key=lambda tool: tool.name)

    async def put(self, tenant: str, name: str, spec: ToolSpec) -> Tool:
        """Register or replace. Raises: ApiError conflict for a builtin's name, invalid-tool for its schemas."""
        _own(name)
        tool = _http(name, spec, time.time_ns())
        row = {
            "tenant": tenant,
            "name": name,
            "digest": tool.digest,
            "spec": canonical(tool.spec),
            "created_ns": tool.created_ns,
        }
        await self._journal.write([upsert(ToolRow, row)])
        self._tools[tenant, name] = tool
        return tool

    async def delete(self, tenant: str, name: str) -> None:
        """Forget a tool; runs that pinned it are refused from now on. Raises: ApiError not-found, conflict."""
        _own(name)
        if (tenant, name) not in self._tools:
            raise not_found("tool", name)
        await self._journal.write([Write("DELETE FROM tool WHERE tenant=? AND name=?", (tenant, name))])
        self._tools.pop((tenant, name), None)


def match(patterns: Iterable[str], name: str) -> bool:
    """Whether one of ``patterns`` (a tool's name, or ``server.*``) covers ``name``."""
    return any(name == pattern or (pattern.endswith(".*") and name.startswith(pattern[:-1])) for pattern in patterns)


def check_args(tool: Tool, args: dict[str, Any]) -> list[Problem]:
    """What is wrong with the arguments; empty when they fit."""
    return tool.arguments.check(args)


def check_output(tool: Tool, value: Any) -> list[Problem]:
    """What is wrong with a result; empty when it fits or the tool declares no output."""
    return [] if tool.output is None else tool.output.check(value)


def resolve_http(tool: Tool, args: dict[str, Any]) -> tuple[HttpCall, Destination]:
    """The request of an HTTP tool, without its secrets (``tool.http.secrets``). Raises: ArgumentsRefused."""
    if tool.http is None:
        raise ValueError(f"{tool.name} is not an HTTP tool")
    return resolve(tool.http.http, args)


def _own(name: str) -> None:
    if name.startswith(_BUILTIN_PREFIX):
        raise _reserved(name)


def _reserved(name: str) -> ApiError:
    return invalid_tool([field_problem("", f"{name} is the platform's own", "choose another server name", "reserved")])


def _builtin(name: str, spec: dict[str, Any]) -> Tool:
    return Tool(
        name=name,
        digest=digest_of(name, spec),
        kind="builtin",
        effect=spec["effect"],
        description=spec["description"],
        spec=spec,
        http=None,
        arguments=Schema(spec["input"]),
        output=Schema(spec["output"]),
    )


def _http(name: str, spec: ToolSpec, created_ns: int) -> Tool:
    problems: list[Problem] = []
    compiled: dict[str, Schema | None] = {"output": None}
    for part, schema in (("input", spec.input), ("output", spec.output)):
        try:
            compiled[part] = None if schema is None else Schema(schema)
        except SchemaInvalid as error:
            problems.append(field_problem(f"/{part}", str(error), "give a self-contained JSON Schema"))
    if spec.input.get("type") != "object":
        problems.append(field_problem("/input/type", "arguments are an object", 'set "type": "object"'))
    properties = spec.input.get("properties")
    for argument in (*spec.http.path_arguments(), *spec.http.query):
        if not isinstance(properties, dict) or argument not in properties:
            message = f"http uses the argument {argument!r}, which input does not declare"
            problems.append(field_problem("/input/properties", message, "declare it"))
    arguments = compiled.get("input")
    if problems or arguments is None:
        raise invalid_tool(problems)
    plain = spec.model_dump(mode="json", exclude_defaults=True) | {"kind": spec.kind}
    return Tool(
        name=name,
        digest=digest_of(name, plain),
        kind=spec.kind,
        effect=spec.effect,
        description=spec.description,
        spec=plain,
        http=spec,
        arguments=arguments,
        output=compiled["output"],
        created_ns=created_ns,
    )
