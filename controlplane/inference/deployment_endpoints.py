"""/v1/model-deployments: what is to serve which model, declared; and how far it is."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Path, Query, Response

from controlplane.dependencies import ModelWriter, Reader, ServicesDep, id_pattern
from controlplane.errors import not_yet
from controlplane.inference.deployments import Deployments
from controlplane.inference.spec import NAME_PATTERN, DeploymentSpec
from controlplane.pages import Cursor, Limit, page, text_cursor, write_cursor
from controlplane.services import Services
from controlplane.strict_route import StrictRoute

router = APIRouter(prefix="/v1/model-deployments", tags=["models"], route_class=StrictRoute)

DeploymentName = Annotated[str, Path(pattern=NAME_PATTERN, examples=["small"])]
IfMatch = Annotated[
    str | None, Header(max_length=256, description="The `ETag` of the state you saw; another one is refused.")
]
_EXAMPLES = [
    {"engine": "llamacpp", "source": "smollm2-135m.gguf", "replicas": 2, "args": {"parallel": 4}},
    {
        "engine": "external",
        "external": {"url": "https://models.example/v1", "model": "large-2", "secret": "models-key"},
        "aliases": ["gpt-4o"],
    },
]


@router.get("")
async def list_deployments(principal: Reader, services: ServicesDep, cursor: Cursor = None, limit: Limit = 50) -> Any:
    """By name."""
    deployments = _deployments(services)
    after = text_cursor(cursor) or ""
    rest = [one for one in deployments.all(principal.tenant) if one.name > after]
    following = write_cursor(rest[limit - 1].name) if len(rest) > limit else None
    return page([deployments.shown(one) for one in rest[:limit]], following)


@router.get("/{name}")
async def get_deployment(name: DeploymentName, principal: Reader, services: ServicesDep, response: Response) -> Any:
    """One deployment: what is asked for, what there is, and what keeps it from being so."""
    deployments = _deployments(services)
    found = deployments.get(principal.tenant, name)
    response.headers["ETag"] = found.tag
    return deployments.shown(found)


@router.put("/{name}", responses={201: {"description": "It is new."}})
async def put_deployment(
    name: DeploymentName,
    body: Annotated[DeploymentSpec, Body(examples=_EXAMPLES)],
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
    return deployments.shown(made)


@router.delete("/{name}", status_code=204)
async def delete_deployment(
    name: DeploymentName, principal: ModelWriter, services: ServicesDep, if_match: IfMatch = None
) -> None:
    """Forget it: no more calls go there, and its servers end when those they have are answered."""
    await _deployments(services).delete(principal.tenant, name, if_match)


@router.get("/{name}/logs")
async def deployment_logs(
    name: DeploymentName,
    principal: Reader,
    services: ServicesDep,
    replica: Annotated[str | None, Query(pattern=id_pattern("rep"), description="Default: the oldest.")] = None,
) -> Any:
    """The last 64 KiB that a replica's server wrote, from its node, now."""
    deployments = _deployments(services)
    return await deployments.log(deployments.get(principal.tenant, name), replica)


def _deployments(services: Services) -> Deployments:
    if services.engine is None:
        raise not_yet("Deploying models in this process")
    return services.engine.deployments
