"""/v1/model-deployments: what is to serve which model, declared; and how far it is."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Path, Response

from controlplane.dependencies import ModelWriter, Reader, ServicesDep
from controlplane.errors import not_yet
from controlplane.inference.deployments import Deployment, Deployments, to_json
from controlplane.inference.spec import NAME_PATTERN, DeploymentSpec
from controlplane.pages import Cursor, Limit, page, text_cursor, write_cursor
from controlplane.services import Services
from controlplane.strict_route import StrictRoute

router = APIRouter(prefix="/v1/model-deployments", tags=["models"], route_class=StrictRoute)

DeploymentName = Annotated[str, Path(pattern=NAME_PATTERN, examples=["small"])]
IfMatch = Annotated[
    str | None, Header(max_length=256, description="The `ETag` of the state you saw; another one is refused.")
]
_EXAMPLE = {
    "engine": "external",
    "external": {"url": "https://models.example/v1", "model": "large-2", "secret": "models-key"},
    "aliases": ["gpt-4o"],
}


@router.get("")
async def list_deployments(principal: Reader, services: ServicesDep, cursor: Cursor = None, limit: Limit = 50) -> Any:
    """By name."""
    deployments = _deployments(services)
    after = text_cursor(cursor) or ""
    rest = [one for one in deployments.all(principal.tenant) if one.name > after]
    following = write_cursor(rest[limit - 1].name) if len(rest) > limit else None
    return page([_shown(deployments, one) for one in rest[:limit]], following)


@router.get("/{name}")
async def get_deployment(name: DeploymentName, principal: Reader, services: ServicesDep, response: Response) -> Any:
    """One deployment: what is asked for, what there is, and what keeps it from being so."""
    deployments = _deployments(services)
    found = deployments.get(principal.tenant, name)
    response.headers["ETag"] = found.tag
    return _shown(deployments, found)


@router.put("/{name}", responses={201: {"description": "It is new."}})
async def put_deployment(
    name: DeploymentName,
    body: Annotated[DeploymentSpec, Body(examples=[_EXAMPLE])],
    principal: ModelWriter,
    services: ServicesDep,
    response: Response,
    if_match: IfMatch = None,
) -> Any:
    """Create or change. The nodes follow: `status` and `conditions` say how far they are."""
    deployments = _deployments(services)
    made, is_new = await deployments.put(principal.tenant, name, body, if_match)
    response.status_code = 201 if is_new else 200
    response.headers["ETag"] = made.tag
    return _shown(deployments, made)


@router.delete("/{name}", status_code=204)
async def delete_deployment(
    name: DeploymentName, principal: ModelWriter, services: ServicesDep, if_match: IfMatch = None
) -> None:
    """Forget it: no more calls go there, and its servers end when those they have are answered."""
    await _deployments(services).delete(principal.tenant, name, if_match)


def _deployments(services: Services) -> Deployments:
    if services.engine is None:
        raise not_yet("Deploying models in this process")
    return services.engine.deployments


def _shown(deployments: Deployments, one: Deployment) -> dict[str, Any]:
    return to_json(one, deployments.of(one.tenant, one.name))
