"""/v1/workflows: published definitions. ``name@version`` never changes."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict
from sqlmodel import and_, col, or_, select

from controlplane.dependencies import Reader, Runner, ServicesDep
from controlplane.errors import conflict, not_found
from controlplane.pages import Cursor, Limit, page, time_cursor, write_cursor
from controlplane.store import canonical, insert
from controlplane.strict_route import StrictRoute
from controlplane.tables import WorkflowRow
from controlplane.times import rfc3339

router = APIRouter(prefix="/v1/workflows", tags=["workflows"], route_class=StrictRoute)
_EXAMPLE: dict[str, Any] = {
    "definition": {"stockade": "1", "name": "hello", "version": "1.0.0", "steps": [{"id": "a", "set": {"x": 1}}]}
}


class WorkflowRequest(BaseModel):
    """What to publish; its name and version are in it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})
    definition: dict[str, Any]


@router.post("", status_code=201)
async def publish_workflow(body: WorkflowRequest, principal: Runner, services: ServicesDep, response: Response) -> Any:
    """Check and publish. The same definition again is no change; another one under the same version is refused."""
    compiled = await services.definitions.compile(body.definition)
    name, version = compiled.definition.name, compiled.definition.version
    response.headers["Location"] = f"/v1/workflows/{name}@{version}"
    key = (principal.tenant, name, version)
    known = await services.store.read(lambda session: session.get(WorkflowRow, key))
    if known is not None:
        if known.digest != compiled.digest:
            raise conflict(f"{name}@{version} is published with other content. Publish it under a new version.")
        return _workflow_json(known)
    row = WorkflowRow(
        tenant=principal.tenant,
        name=name,
        version=version,
        digest=compiled.digest,
        definition=canonical(body.definition),
        created_ns=time.time_ns(),
    )
    await services.journal.write([insert(WorkflowRow, row.model_dump())])
    return _workflow_json(row)


@router.get("")
async def list_workflows(principal: Reader, services: ServicesDep, cursor: Cursor = None, limit: Limit = 50) -> Any:
    """Newest first."""
    query = select(WorkflowRow).where(WorkflowRow.tenant == principal.tenant)
    if (position := time_cursor(cursor)) is not None:
        at, last = position
        named = col(WorkflowRow.name) + "@" + col(WorkflowRow.version)
        query = query.where(
            or_(col(WorkflowRow.created_ns) < at, and_(col(WorkflowRow.created_ns) == at, named < last))
        )
    order = (col(WorkflowRow.name) + "@" + col(WorkflowRow.version)).desc()
    query = query.order_by(col(WorkflowRow.created_ns).desc(), order).limit(limit + 1)
    rows = await services.store.read(lambda session: session.exec(query).all())
    last_row = rows[limit - 1] if len(rows) > limit else None
    following = None if last_row is None else write_cursor(last_row.created_ns, f"{last_row.name}@{last_row.version}")
    return page([_workflow_json(row) for row in rows[:limit]], following)


@router.get("/{name}@{version}")
async def get_workflow(
    name: Annotated[str, Path(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)],
    version: Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=64)],
    principal: Reader,
    services: ServicesDep,
) -> Any:
    """One published definition."""
    row = await services.store.read(lambda session: session.get(WorkflowRow, (principal.tenant, name, version)))
    if row is None:
        raise not_found("workflow", f"{name}@{version}", "GET /v1/workflows lists them.")
    return _workflow_json(row)


def _workflow_json(row: WorkflowRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "version": row.version,
        "digest": row.digest,
        "definition": json.loads(row.definition),
        "created_at": rfc3339(row.created_ns),
    }
