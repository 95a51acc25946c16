"""/v1/nodes: the live view, and join tokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from controlplane.dependencies import Admin, NodeId, Reader, ServicesDep
from controlplane.errors import not_found
from controlplane.pages import page
from controlplane.services import Services
from controlplane.strict_route import StrictRoute
from controlplane.times import rfc3339

router = APIRouter(prefix="/v1/nodes", tags=["nodes"], route_class=StrictRoute)


@router.get("")
async def list_nodes(_: Reader, services: ServicesDep) -> Any:
    """Every known node."""
    return page(_view(services))


@router.get("/{node_id}")
async def get_node(node_id: NodeId, _: Reader, services: ServicesDep) -> Any:
    """One node, by id or name."""
    for node in _view(services):
        if node_id in (node["id"], node.get("name")):
            return node
    raise not_found("node", node_id, "GET /v1/nodes lists them.")


@router.post("/join-tokens", status_code=201)
async def create_join_token(_: Admin, services: ServicesDep) -> Any:
    """A token for a node to join with. It is shown once."""
    token, expires_ns = await services.identities.create_join_token(services.settings.join_token_seconds)
    return {"token": token, "expires_at": rfc3339(expires_ns)}


def _view(services: Services) -> list[dict[str, Any]]:
    return [] if services.inventory is None else services.inventory.view()
