"""/v1/secrets: write-only. Nothing here can read a value."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from controlplane.dependencies import SecretName, SecretWriter, ServicesDep
from controlplane.errors import field_problem, invalid_request, not_found
from controlplane.pages import page
from controlplane.strict_route import StrictRoute
from controlplane.times import rfc3339

router = APIRouter(prefix="/v1/secrets", tags=["secrets"], route_class=StrictRoute)


class SecretRequest(BaseModel):
    """The value, which no answer ever shows again."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"value": "s3cr3t"}]})
    value: SecretStr = Field(min_length=1, max_length=65_536)


@router.put("/{name}", status_code=204)
async def put_secret(name: SecretName, body: SecretRequest, principal: SecretWriter, services: ServicesDep) -> None:
    """Create or replace."""
    value = body.value.get_secret_value()
    if "\r" in value or "\n" in value:
        raise invalid_request(
            [field_problem("/value", "a value goes into a header and has no line breaks", "strip it")]
        )
    await services.secrets.put(principal.tenant, name, value)


@router.get("")
async def list_secrets(principal: SecretWriter, services: ServicesDep) -> Any:
    """Names and times."""
    return page(
        [
            {"name": one.name, "created_at": rfc3339(one.created_ns), "updated_at": rfc3339(one.updated_ns)}
            for one in await services.secrets.names(principal.tenant)
        ]
    )


@router.delete("/{name}", status_code=204)
async def delete_secret(name: SecretName, principal: SecretWriter, services: ServicesDep) -> None:
    """Forget it; requests that need it fail from now on."""
    if not await services.secrets.delete(principal.tenant, name):
        raise not_found("secret", name, "GET /v1/secrets lists their names.")
