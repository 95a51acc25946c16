"""/v1/mcp-servers: declare, look, review, forget. Listing is a run of ``builtin.mcp.list``: a node does it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path

from controlplane.dependencies import Reader, ServicesDep, ToolWriter
from controlplane.errors import forbidden, not_found
from controlplane.pages import page
from controlplane.strict_route import StrictRoute
from controlplane.tools.mcp_spec import SERVER_PATTERN, McpServerSpec, Review

router = APIRouter(prefix="/v1/mcp-servers", tags=["tools"], route_class=StrictRoute)
ServerName = Annotated[str, Path(pattern=SERVER_PATTERN, examples=["time"])]

_PROCESS = {
    "process": {
        "command": ["python3", "-m", "mcp_server_time"],
        "env": {"PYTHONPATH": "/inputs/packages"},
        "mounts": {"packages": "data://mcp-time"},
    }
}
_REVIEW = {"tools": [{"name": "get_current_time", "digest": f"sha256:{'0' * 64}", "effect": "none"}]}


@router.get("")
async def list_mcp_servers(principal: Reader, services: ServicesDep) -> Any:
    """Registered MCP servers, with the tools they offer and what was reviewed of them."""
    tools = services.tools
    return page([tools.shown(server) for server in tools.servers.list(principal.tenant)])


@router.get("/{name}")
async def get_mcp_server(name: ServerName, principal: Reader, services: ServicesDep) -> Any:
    """One server."""
    server = services.tools.servers.get(principal.tenant, name)
    if server is None:
        raise not_found("MCP server", name, "GET /v1/mcp-servers lists them.")
    return services.tools.shown(server)


@router.put("/{name}")
async def put_mcp_server(
    name: ServerName,
    body: Annotated[McpServerSpec, Body(examples=[_PROCESS])],
    principal: ToolWriter,
    services: ServicesDep,
) -> Any:
    """Declare, or declare anew: then its tools are listed and reviewed again before anything calls them."""
    return services.tools.shown(await services.tools.put_server(principal.tenant, name, body))


@router.post("/{name}:review")
async def review_mcp_server(
    name: ServerName, body: Annotated[Review, Body(examples=[_REVIEW])], principal: ToolWriter, services: ServicesDep
) -> Any:
    """Accept definitions by their digests. Needs a person's key with the scope ``tool``."""
    if principal.kind != "person":
        raise forbidden("tool", "A review is a person's: use a key of the kind person with the scope tool.")
    return services.tools.shown(await services.tools.review(principal.tenant, name, body.tools))


@router.delete("/{name}", status_code=204)
async def delete_mcp_server(name: ServerName, principal: ToolWriter, services: ServicesDep) -> None:
    """Forget it and its tools."""
    await services.tools.delete_server(principal.tenant, name)
