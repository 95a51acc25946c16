"""/v1/usage: tokens by principal, run and model."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from controlplane.dependencies import Reader, ServicesDep, id_pattern
from controlplane.errors import not_yet
from controlplane.pages import page
from controlplane.strict_route import StrictRoute

router = APIRouter(prefix="/v1/usage", tags=["models"], route_class=StrictRoute)


@router.get("")
async def get_usage(
    principal: Reader,
    services: ServicesDep,
    days: Annotated[int, Query(ge=1, le=366)] = 30,
    run: Annotated[str | None, Query(pattern=id_pattern("run"))] = None,
    by: Annotated[str | None, Query(pattern=id_pattern("key"))] = None,
) -> Any:
    """Calls of models and their tokens in the last ``days`` days, most tokens first; of one run, or ``by`` one key."""
    if services.engine is None:
        raise not_yet("Calling models in this process")
    meter = services.engine.inference.meter
    return page(await meter.totals(principal.tenant, days=days, run=run, principal=by))
