"""/v1/tools: register, look, forget."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body

from controlplane.dependencies import Reader, ServicesDep, ToolName, ToolWriter
from controlplane.errors import not_found
from controlplane.pages import page
from controlplane.strict_route import StrictRoute
from controlplane.tools.spec import ToolSpec

router = APIRouter(prefix="/v1/tools", tags=["tools"], route_class=StrictRoute)

_EXAMPLE = {
    "kind": "http",
    "description": "Opens a ticket.",
    "effect": "immediate",
    "input": {
        "type": "object",
        "properties": {"project": {"type": "string"}, "title": {"type": "string"}},
        "required": ["project", "title"],
    },
    "http": {"method": "POST", "url": "https://tickets.example/projects/{project}/tickets", "body": "json"},
    "secrets": [{"name": "tickets-api", "header": "Authorization", "format": "Bearer {}"}],
}


@router.get("")
async def list_tools(principal: Reader, services: ServicesDep) -> Any:
    """Registered tools and the builtin ones."""
    return page([tool.to_json() for tool in services.tools.list(principal.tenant)])


@router.get("/{name}")
async def get_tool(name: ToolName, principal: Reader, services: ServicesDep) -> Any:
    """One tool."""
    tool = services.tools.get(principal.tenant, name)
    if tool is None:
        raise not_found("tool", name, "GET /v1/tools lists them.")
    return tool.to_json()


@router.put("/{name}")
async def put_tool(
    name: ToolName, body: Annotated[ToolSpec, Body(examples=[_EXAMPLE])], principal: ToolWriter, services: ServicesDep
) -> Any:
    """Register or replace; the digest changes with the spec, and runs keep the digest they were admitted with."""
    return (await services.tools.put(principal.tenant, name, body)).to_json()


@router.delete("/{name}", status_code=204)
async def delete_tool(name: ToolName, principal: ToolWriter, services: ServicesDep) -> None:
    """Forget it."""
    await services.tools.delete(principal.tenant, name)
