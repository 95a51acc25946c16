"""/v1/whoami and /v1/keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from controlplane.dependencies import Admin, AnyKey, KeyId, ServicesDep
from controlplane.identity import Scope
from controlplane.pages import page
from controlplane.strict_route import StrictRoute

router = APIRouter(prefix="/v1", tags=["account"], route_class=StrictRoute)
_TEN_YEARS = 10 * 365 * 86_400
_EXAMPLE: dict[str, Any] = {"name": "ci", "kind": "service", "scopes": ["run", "read"], "expires_in": 2_592_000}


class KeyRequest(BaseModel):
    """Who gets a key and what it may do. ``expires_in`` is in seconds; without it the key does not end."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})
    name: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
    kind: Literal["person", "service"]
    scopes: list[Scope] = Field(min_length=1, max_length=6)
    groups: list[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$", max_length=64)]] = Field(
        default=[], max_length=32
    )
    expires_in: int | None = Field(default=None, ge=1, le=_TEN_YEARS)


@router.get("/whoami")
async def whoami(principal: AnyKey) -> Any:
    """The caller, as policy sees them."""
    return principal.to_json()


@router.post("/keys", status_code=201)
async def create_key(body: KeyRequest, _: Admin, services: ServicesDep) -> Any:
    """A new principal. ``key`` is shown here and never again."""
    shown, key = await services.identities.create(
        name=body.name, kind=body.kind, scopes=body.scopes, groups=body.groups, expires_in_seconds=body.expires_in
    )
    return shown | {"key": key}


@router.get("/keys")
async def list_keys(_: Admin, services: ServicesDep) -> Any:
    """All keys by their prefixes, revoked ones too."""
    return page(await services.identities.list())


@router.delete("/keys/{key_id}", status_code=204)
async def revoke_key(key_id: KeyId, _: Admin, services: ServicesDep) -> None:
    """End a key, now."""
    await services.identities.revoke(key_id)
