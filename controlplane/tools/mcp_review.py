"""What of an MCP server waits for a review, and what a review makes of it. Values in, values out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, Literal

from controlplane.errors import conflict, field_problem, invalid_tool, not_found
from controlplane.times import rfc3339
from controlplane.tools.mcp_servers import McpServer
from controlplane.tools.mcp_spec import Acceptance, Definition, McpToolSpec
from controlplane.tools.spec import NAME_PATTERN
from dataplane import tool_definitions

State = Literal["unreviewed", "reviewed", "changed", "missing"]
NAME_MOST = 128
_NAME = re.compile(NAME_PATTERN)


def accepted(server: McpServer, acceptance: Acceptance) -> tuple[str, McpToolSpec]:
    """The tool's name here, and the tool. Raises: ApiError conflict when another was read."""
    definition = server.definition(acceptance.name)
    if definition is None:
        hint = f"`stockade tool review {server.name}` lists what it offers."
        raise not_found(f"tool of {server.name}", acceptance.name, hint)
    raw = plain(definition)
    digest = tool_definitions.digest(raw)
    if digest != acceptance.digest:
        raise conflict(
            f"{server.name} offers another {acceptance.name} than the one you read. Look again and accept it."
        )
    name = f"{server.name}.{acceptance.name}"
    if not _NAME.match(name) or len(name) > NAME_MOST:
        message = f"{acceptance.name!r} cannot be a tool's name here"
        hint = f"names are letters, digits, - and _, in parts with dots between, at most {NAME_MOST} characters"
        raise invalid_tool([field_problem("/tools", message, hint)])
    _check_critical(definition, acceptance)
    return name, McpToolSpec(
        description=(definition.description or definition.title or acceptance.name)[:4096],
        effect=acceptance.effect,
        input=definition.inputSchema,
        output=definition.outputSchema,
        critical_args=acceptance.critical_args,
        server=server.name,
        server_digest=server.digest,
        definition=raw,
        definition_digest=digest,
    )


def _check_critical(definition: Definition, acceptance: Acceptance) -> None:
    """A misspelt argument would guard nothing. Raises: ApiError invalid-tool."""
    properties = definition.inputSchema.get("properties")
    if not isinstance(properties, dict):
        return  # it declares none: what it takes is not known
    problems = []
    for argument in acceptance.critical_args or ():
        if argument not in properties:
            near = difflib.get_close_matches(argument, list(map(str, properties)), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(sorted(map(str, properties))[:20])}"
            message = f"{acceptance.name} takes no argument {argument!r}"
            problems.append(field_problem("/tools/critical_args", message, hint))
    if problems:
        raise invalid_tool(problems)


def plain(definition: Definition) -> dict[str, Any]:
    """The definition as a server says it."""
    return definition.model_dump(mode="json", exclude_none=True)


def shown(server: McpServer, reviewed: Iterable[McpToolSpec]) -> dict[str, Any]:
    """As ``GET /v1/mcp-servers`` shows it: every tool that is offered or was accepted, with its state."""
    known = {str(one.definition["name"]): one for one in reviewed}
    offered = {one.name: plain(one) for one in server.offered.tools} if server.offered else {}
    tools = [_tool(server, name, offered.get(name), known.get(name)) for name in sorted(offered.keys() | known.keys())]
    return {
        "name": server.name,
        "digest": server.digest,
        **server.spec.model_dump(mode="json", exclude_defaults=True),
        "kind": "mcp",
        "created_at": rfc3339(server.created_ns),
        "listed_at": rfc3339(server.offered_ns),
        "tools": tools,
        "left_out": [one.model_dump(mode="json") for one in server.offered.left_out] if server.offered else [],
    }


def _tool(server: McpServer, name: str, offered: dict[str, Any] | None, known: McpToolSpec | None) -> dict[str, Any]:
    digest = None if offered is None else tool_definitions.digest(offered)
    state: State = "unreviewed"
    if known is not None:
        current = known.server_digest == server.digest
        state = "reviewed" if current and digest in (None, known.definition_digest) else "changed"
        if current and server.offered is not None and offered is None:
            state = "missing"
    return {
        "name": f"{server.name}.{name}",
        "tool": name,
        "state": state,
        "digest": digest,
        "definition": offered,
        "reviewed": None
        if known is None
        else {
            "digest": known.definition_digest,
            "effect": known.effect,
            "critical_args": known.critical_args,
            "definition": known.definition,
        },
        "difference": tool_definitions.difference(known.definition, offered) if known and offered else "",
    }
