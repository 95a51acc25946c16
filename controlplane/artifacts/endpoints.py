"""/v1/artifacts: references, their bytes, and uploads."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlmodel import and_, col, or_, select

from controlplane.artifacts.artifacts import MEDIA_TYPE_PATTERN, NAME_PATTERN, artifact_json
from controlplane.dependencies import ArtifactId, Reader, Runner, ServicesDep, id_pattern
from controlplane.errors import not_found
from controlplane.pages import Cursor, Limit, page, time_cursor, write_cursor
from controlplane.strict_route import StrictRoute
from controlplane.tables import ArtifactRow

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"], route_class=StrictRoute)

_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("")
async def list_artifacts(
    principal: Reader,
    services: ServicesDep,
    run: Annotated[str | None, Query(pattern=id_pattern("run"))] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Any:
    """Newest first."""
    query = select(ArtifactRow).where(ArtifactRow.tenant == principal.tenant)
    if run is not None:
        query = query.where(ArtifactRow.run == run)
    if (position := time_cursor(cursor)) is not None:
        at, last = position
        older = and_(col(ArtifactRow.created_ns) == at, col(ArtifactRow.id) < last)
        query = query.where(or_(col(ArtifactRow.created_ns) < at, older))
    query = query.order_by(col(ArtifactRow.created_ns).desc(), col(ArtifactRow.id).desc()).limit(limit + 1)
    rows = await services.store.read(lambda session: session.exec(query).all())
    following = write_cursor(rows[limit - 1].created_ns, rows[limit - 1].id) if len(rows) > limit else None
    return page([artifact_json(row) for row in rows[:limit]], following)


@router.post("", status_code=201, openapi_extra=_UPLOAD)
async def upload_artifact(
    request: Request,
    response: Response,
    principal: Runner,
    services: ServicesDep,
    name: Annotated[str, Query(pattern=NAME_PATTERN, examples=["logs.txt"])],
    media_type: Annotated[str, Query(pattern=MEDIA_TYPE_PATTERN)] = "application/octet-stream",
) -> Any:
    """Store the raw body. Equal bytes are stored once."""
    shown = await services.artifacts.put(principal.tenant, name, media_type, request.stream())
    response.headers["Location"] = f"/v1/artifacts/{shown['id']}"
    return shown


@router.get("/{artifact_id}")
async def get_artifact(artifact_id: ArtifactId, principal: Reader, services: ServicesDep) -> Any:
    """One reference."""
    shown = await services.artifacts.get(principal.tenant, artifact_id)
    if shown is None:
        raise not_found("artifact", artifact_id, "GET /v1/artifacts lists them.")
    return shown


@router.get(
    "/{artifact_id}/content",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The bytes"}},
)
async def get_content(artifact_id: ArtifactId, principal: Reader, services: ServicesDep) -> Response:
    """The bytes, as a download: a guest may have written them, so no browser gets to render them."""
    opened = await services.artifacts.open(principal.tenant, artifact_id)
    if opened is None:
        raise not_found("artifact", artifact_id, "GET /v1/artifacts lists them.")
    shown, chunks = opened
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", shown["name"])
    headers = {
        "Content-Length": str(shown["size_bytes"]),
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(shown['name'], safe='')}",
        "ETag": f'"{shown["digest"]}"',
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
    }
    return StreamingResponse(chunks, headers=headers, media_type=shown["media_type"])
