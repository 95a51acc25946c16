"""/v1/nodes: the live view, and join tokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from controlplane.dependencies import Admin, NodeId, Reader, ServicesDep
from controlplane.errors import conflict, not_found
from controlplane.pages import page
from controlplane.services import Services
from controlplane.store import Write
from controlplane.strict_route import StrictRoute
from controlplane.times import rfc3339

router = APIRouter(prefix="/v1/nodes", tags=["nodes"], route_class=StrictRoute)
_LISTED = "GET /v1/nodes lists them."


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
    raise not_found("node", node_id, _LISTED)


@router.delete("/{node_id}", status_code=204)
async def delete_node(node_id: NodeId, principal: Admin, services: ServicesDep) -> None:
    """Forget a node that is lost or runs nothing, and its token. A node that still runs can join anew."""
    if services.engine is None:
        raise not_found("node", node_id, _LISTED)
    inventory, controller = services.engine.inventory, services.engine.controller
    async with inventory.joining:
        node = inventory.nodes.get(node_id) or inventory.by_name(principal.tenant, node_id)
        if node is None or node.tenant != principal.tenant:
            raise not_found("node", node_id, _LISTED)
        held = sum(1 for _run, step in controller.attempts.values() if step.node == node.id)
        if held and not node.lost:
            raise conflict(
                f"Node {node.name} may be running {held} attempts. Stop it (it finishes them first), or wait until it "
                f"has been declared lost, at most {services.settings.hold_seconds:g} s after it fell silent."
            )
        row = (node.tenant, node.id)
        await services.journal.write([Write("DELETE FROM node WHERE tenant=? AND id=?", row)])
        # What it was given while that was stored goes to another node.
        controller.node_gone(node.id, "node_lost", f"node {node.name} was removed")
        inventory.remove(node.id)


@router.post("/join-tokens", status_code=201)
async def create_join_token(_: Admin, services: ServicesDep) -> Any:
    """A token for a node to join with. It is shown once."""
    token, expires_ns = await services.identities.create_join_token(services.settings.join_token_seconds)
    return {"token": token, "expires_at": rfc3339(expires_ns)}


def _view(services: Services) -> list[dict[str, Any]]:
    return [] if services.inventory is None else services.inventory.view()
