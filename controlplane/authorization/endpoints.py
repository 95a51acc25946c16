"""/v1/decisions: what policy decided and why."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlmodel import and_, col, or_, select

from controlplane.authorization.values import EntryPoint
from controlplane.dependencies import DecisionId, Reader, ServicesDep, id_pattern
from controlplane.errors import not_found
from controlplane.pages import Cursor, Limit, page, time_cursor, write_cursor
from controlplane.strict_route import StrictRoute
from controlplane.tables import DecisionRow
from controlplane.times import rfc3339

router = APIRouter(prefix="/v1/decisions", tags=["decisions"], route_class=StrictRoute)


@router.get("")
async def list_decisions(
    principal: Reader,
    services: ServicesDep,
    run: Annotated[str | None, Query(pattern=id_pattern("run"))] = None,
    entry: EntryPoint | None = None,
    allow: bool | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Any:
    """Newest first."""
    query = select(DecisionRow).where(DecisionRow.tenant == principal.tenant)
    if run is not None:
        query = query.where(DecisionRow.run == run)
    if entry is not None:
        query = query.where(DecisionRow.entry == entry.value)
    if allow is not None:
        query = query.where(DecisionRow.allow == allow)
    if (position := time_cursor(cursor)) is not None:
        at, last = position
        older = and_(col(DecisionRow.at_ns) == at, col(DecisionRow.id) < last)
        query = query.where(or_(col(DecisionRow.at_ns) < at, older))
    query = query.order_by(col(DecisionRow.at_ns).desc(), col(DecisionRow.id).desc()).limit(limit + 1)
    rows = await services.store.read(lambda session: session.exec(query).all())
    following = write_cursor(rows[limit - 1].at_ns, rows[limit - 1].id) if len(rows) > limit else None
    return page([_decision_json(row) for row in rows[:limit]], following)


@router.get("/{decision_id}")
async def get_decision(decision_id: DecisionId, principal: Reader, services: ServicesDep) -> Any:
    """One decision with its reasons and its masked input."""
    query = select(DecisionRow).where(DecisionRow.tenant == principal.tenant, DecisionRow.id == decision_id)
    row = await services.store.read(lambda session: session.exec(query).first())
    if row is None:
        raise not_found("decision", decision_id, "GET /v1/decisions lists them.")
    return _decision_json(row)


def _decision_json(row: DecisionRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "entry": row.entry,
        "run": row.run,
        "path": row.path,
        "allow": row.allow,
        "reasons": json.loads(row.reasons),
        "obligations": json.loads(row.obligations),
        "revision": row.revision,
        "engine": row.engine,
        "failure": row.failure,
        "input_digest": row.input_digest,
        "input": json.loads(row.input),
        "at": rfc3339(row.at_ns),
    }
