"""The registered tools, in memory; the ``tool`` table is what a restart reads.

tool = registry.get(tenant, "tickets.create")        # None: no such tool
problems = check_args(tool, args)                    # before policy is asked
call, destination = resolve_http(tool, args)         # for policy's question, then for the node
"""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlmodel import select

from controlplane.errors import ApiError, conflict, field_problem, invalid_tool, not_found
from controlplane.runs.journal import Journal
from controlplane.store import Store, Write, canonical, upsert
from controlplane.tables import ToolRow
from controlplane.times import rfc3339
from controlplane.tools import mcp_review
from controlplane.tools.builtin import BUILTIN
from controlplane.tools.mcp_servers import McpServer, McpServers
from controlplane.tools.mcp_spec import Acceptance, McpServerSpec, McpToolSpec
from controlplane.tools.requests import ArgumentsRefused, Destination, resolve
from controlplane.tools.schemas import Schema, SchemaInvalid
from controlplane.tools.spec import ToolSpec, digest_of
from controlplane.workflows.problem_values import Problem
from dataplane.protocol import HttpCall

__all__ = ["ArgumentsRefused", "Destination", "Tool", "ToolRegistry", "check_args", "check_output", "match"]
log = structlog.get_logger(__name__)
_BUILTIN_PREFIX = "builtin."


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One version of a tool. ``http`` or ``mcp`` has the parsed spec of what is no builtin."""

    name: str
    digest: str
    kind: str
    effect: str
    description: str
    spec: dict[str, Any]
    http: ToolSpec | None = None
    mcp: McpToolSpec | None = None
    arguments: Schema = field(repr=False)
    output: Schema | None = field(repr=False)
    created_ns: int | None = None

    @property
    def critical_args(self) -> list[str] | None:
        """Arguments that decide an effect; ``None`` is all of them."""
        declared = self.http or self.mcp
        return [] if declared is None or self.effect == "none" else declared.critical_args

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
        self.servers = McpServers(store, journal)

    async def load(self) -> None:
        """Read the table. A tool that an earlier version took and this one refuses is absent, and the log says why."""
        rows = await self._store.read(lambda session: session.exec(select(ToolRow)).all())
        for row in rows:
            try:
                self._tools[row.tenant, row.name] = _stored(row.name, json.loads(row.spec), row.created_ns)
            except ApiError as refused:
                why = [f"{one.pointer}: {one.message}" for one in refused.errors]
                log.error("a stored tool is refused and left out", tool=row.name, why=why)
        await self.servers.load()

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
        if self.servers.get(tenant, _server_of(name)) is not None:
            raise conflict(f"{_server_of(name)} is an MCP server, and its tools are its own; choose another name.")
        tool = _http(name, spec, time.time_ns())
        await self._journal.write([_row(tenant, tool)])
        self._tools[tenant, name] = tool
        return tool

    async def put_server(self, tenant: str, name: str, spec: McpServerSpec) -> McpServer:
        """Declare an MCP server. Raises: ApiError conflict where tools of another kind have its name."""
        _own(f"{name}.")
        if any(tool.mcp is None for tool in self._of_server(tenant, name)):
            raise conflict(f"There are HTTP tools named {name}.…; remove them, or name the MCP server otherwise.")
        return await self.servers.put(tenant, name, spec)

    async def delete_server(self, tenant: str, name: str) -> None:
        """Forget an MCP server and its tools. Raises: ApiError not-found."""
        tools = [
            Write("DELETE FROM tool WHERE tenant=? AND name=?", (tenant, one.name))
            for one in self._of_server(tenant, name)
        ]
        await self._journal.write([self.servers.deletion(tenant, name), *tools])
        for tool in self._of_server(tenant, name):
            self._tools.pop((tenant, tool.name), None)
        self.servers.forget(tenant, name)

    async def review(self, tenant: str, name: str, acceptances: Iterable[Acceptance]) -> McpServer:
        """Accept definitions that a server offers, all or none. Raises: ApiError not-found, conflict, invalid-tool."""
        server = self.servers.get(tenant, name)
        if server is None:
            raise not_found("MCP server", name)
        now = time.time_ns()
        tools = [_mcp(*mcp_review.accepted(server, one), now) for one in acceptances]
        await self._journal.write([_row(tenant, tool) for tool in tools])
        for tool in tools:
            self._tools[tenant, tool.name] = tool
        return server

    def shown(self, server: McpServer) -> dict[str, Any]:
        """A server as the API shows it."""
        reviewed = (tool.mcp for tool in self._of_server(server.tenant, server.name))
        return mcp_review.shown(server, [one for one in reviewed if one is not None])

    def missing(self, tenant: str, name: str) -> tuple[str, str]:
        """Why there is no tool ``name``, and what to do."""
        server = self.servers.get(tenant, _server_of(name))
        if server is None:
            return f"there is no tool {name!r}", f"register it: stockade tool add {name} SPEC.json"
        fix = f"look at it and accept it: stockade tool review {server.name}"
        if server.definition(name.partition(".")[2]) is not None:
            return f"the tool {name!r} was not reviewed", fix
        return f"the MCP server {server.name!r} is not known to offer {name!r}", fix

    def _of_server(self, tenant: str, server: str) -> builtins.list[Tool]:
        return [one for (owner, name), one in self._tools.items() if owner == tenant and _server_of(name) == server]

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


def _server_of(name: str) -> str:
    return name.partition(".")[0]


def _row(tenant: str, tool: Tool) -> Write:
    row = {
        "tenant": tenant,
        "name": tool.name,
        "digest": tool.digest,
        "spec": canonical(tool.spec),
        "created_ns": tool.created_ns,
    }
    return upsert(ToolRow, row)


def _stored(name: str, spec: dict[str, Any], created_ns: int) -> Tool:
    if spec["kind"] == "mcp":
        return _mcp(name, McpToolSpec.model_validate(spec), created_ns)
    return _http(name, ToolSpec.model_validate(spec), created_ns)


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
        arguments=Schema(spec["input"]),
        output=Schema(spec["output"]),
    )


def _http(name: str, spec: ToolSpec, created_ns: int) -> Tool:
    problems: list[Problem] = []
    properties = spec.input.get("properties")
    for argument in (*spec.http.path_arguments(), *spec.http.query):
        if not isinstance(properties, dict) or argument not in properties:
            message = f"http uses the argument {argument!r}, which input does not declare"
            problems.append(field_problem("/input/properties", message, "declare it"))
    return _tool(name, spec, created_ns, problems, http=spec)


def _mcp(name: str, spec: McpToolSpec, created_ns: int) -> Tool:
    return _tool(name, spec, created_ns, [], mcp=spec)


def _tool(
    name: str,
    spec: ToolSpec | McpToolSpec,
    created_ns: int,
    problems: list[Problem],
    *,
    http: ToolSpec | None = None,
    mcp: McpToolSpec | None = None,
) -> Tool:
    """Raises: ApiError invalid-tool."""
    compiled: dict[str, Schema | None] = {"output": None}
    found: list[Problem] = []
    for part, schema in (("input", spec.input), ("output", spec.output)):
        try:
            compiled[part] = None if schema is None else Schema(schema)
        except SchemaInvalid as error:
            found.append(field_problem(f"/{part}", f"{name}: {error}", "give a self-contained JSON Schema"))
    if spec.input.get("type") != "object":
        found.append(field_problem("/input/type", "arguments are an object", 'set "type": "object"'))
    arguments = compiled.get("input")
    if found or problems or arguments is None:
        raise invalid_tool([*found, *problems])
    plain = spec.model_dump(mode="json", exclude_defaults=True) | {"kind": spec.kind}
    return Tool(
        name=name,
        digest=digest_of(name, plain),
        kind=spec.kind,
        effect=spec.effect,
        description=spec.description,
        spec=plain,
        http=http,
        mcp=mcp,
        arguments=arguments,
        output=compiled["output"],
        created_ns=created_ns,
    )
