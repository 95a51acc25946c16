"""From an authorized call of an MCP tool to the order a node gets. The server's declaration decides where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from controlplane.tools.mcp_servers import McpServer
from controlplane.tools.mcp_spec import McpToolSpec
from controlplane.tools.requests import Destination
from controlplane.workflows.quantities import parse_size
from dataplane.protocol import McpCall, McpEndpoint, McpProcess

LISTING = "builtin.mcp.list"


class ServerRefused(Exception):
    """The call cannot be made as things are; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class McpOrder:
    """The call without its secrets; ``roots`` are the data roots it mounts, ``asks_as`` what policy calls the asker."""

    call: McpCall
    server: McpServer
    destination: Destination | None
    roots: tuple[str, ...]
    asks_as: str


def order(server: McpServer | None, name: str, reviewed: McpToolSpec | None, args: dict[str, Any]) -> McpOrder:
    """The call of a reviewed tool, or of none: the listing of the server named ``name``. Raises: ServerRefused."""
    if server is None:
        raise ServerRefused(f"there is no MCP server {name!r}; register it: stockade tool add {name} …")
    if reviewed is not None and reviewed.server_digest != server.digest:
        raise ServerRefused(
            f"the MCP server {name!r} was declared anew since its tools were reviewed; "
            f"look at them again: stockade tool review {name}"
        )
    call = McpCall(
        server=server.name,
        server_id=server.id,
        tool="" if reviewed is None else str(reviewed.definition["name"]),
        args={} if reviewed is None else args,
        reviewed={} if reviewed is None else reviewed.definition,
        timeout_seconds=server.spec.timeout,
    )
    asks_as = f"{name}.list_tools" if reviewed is None else f"{name}.{call.tool}"
    process, endpoint = server.spec.process, server.spec.endpoint
    if process is not None:
        mounts = {at: address.removeprefix("data://") for at, address in process.mounts.items()}
        call.process = McpProcess(
            tier=process.tier,
            image=process.image,
            command=list(process.command),
            env=dict(process.env),
            mounts=mounts,
            memory_bytes=parse_size(process.memory),
        )
        roots = tuple(dict.fromkeys(mounts.values()))
        return McpOrder(call=call, server=server, destination=None, roots=roots, asks_as=asks_as)
    if endpoint is None:
        raise ServerRefused(f"the MCP server {name!r} has neither a process nor an endpoint; declare it again")
    call.endpoint = McpEndpoint(url=endpoint.url, headers=dict(endpoint.headers))
    parts = urlsplit(endpoint.url)
    destination = Destination(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=parts.port or (443 if parts.scheme == "https" else 80),
        method="POST",
        path=parts.path or "/",
    )
    return McpOrder(call=call, server=server, destination=destination, roots=(), asks_as=asks_as)
