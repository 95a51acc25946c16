"""What the API shows of runs, steps and events, read from the tables. Every query is bounded by a page."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, and_, col, or_, select

from controlplane.pages import page, text_cursor, time_cursor, write_cursor
from controlplane.runs.hub import event_json
from controlplane.tables import EventRow, RunDefinitionRow, RunRow, StepRow, partition_of
from controlplane.times import rfc3339

TERMINAL = frozenset({"completed", "failed", "cancelled"})


def get_run(session: Session, tenant: str, run_id: str) -> dict[str, Any] | None:
    """A run as the API shows it, or None."""
    row = session.get(RunRow, (tenant, partition_of(run_id), run_id))
    return None if row is None else _run_json(session, row)


def list_runs(
    session: Session, tenant: str, *, status: str | None, workflow: str | None, cursor: str | None, limit: int
) -> dict[str, Any]:
    """Newest first. ``workflow`` is a name."""
    query = select(RunRow).where(RunRow.tenant == tenant)
    if status is not None:
        query = query.where(RunRow.status == status)
    if workflow is not None:
        query = query.where(RunRow.workflow_name == workflow)
    if (position := time_cursor(cursor)) is not None:
        at, last = position
        older = and_(col(RunRow.created_ns) == at, col(RunRow.id) < last)
        query = query.where(or_(col(RunRow.created_ns) < at, older))
    query = query.order_by(col(RunRow.created_ns).desc(), col(RunRow.id).desc()).limit(limit + 1)
    rows = session.exec(query).all()
    following = write_cursor(rows[limit - 1].created_ns, rows[limit - 1].id) if len(rows) > limit else None
    return page([_run_json(session, row) for row in rows[:limit]], following)


def get_step(session: Session, tenant: str, run_id: str, path: str) -> dict[str, Any] | None:
    """The step instance of that path, or None."""
    row = session.get(StepRow, (tenant, partition_of(run_id), run_id, path, 0))
    return None if row is None else step_json(row)


def list_steps(session: Session, tenant: str, run_id: str, *, cursor: str | None, limit: int) -> dict[str, Any]:
    """The step instances of a run, ordered by path."""
    query = select(StepRow).where(
        StepRow.tenant == tenant, StepRow.partition == partition_of(run_id), StepRow.run == run_id
    )
    if (last := text_cursor(cursor)) is not None:
        query = query.where(col(StepRow.path) > last)
    rows = session.exec(query.order_by(col(StepRow.path)).limit(limit + 1)).all()
    following = write_cursor(rows[limit - 1].path) if len(rows) > limit else None
    return page([step_json(row) for row in rows[:limit]], following)


def events_after(session: Session, tenant: str, run_id: str, after: int, limit: int) -> list[dict[str, Any]]:
    """Events with a ``seq`` above ``after``, in order."""
    query = (
        select(EventRow)
        .where(
            EventRow.tenant == tenant,
            EventRow.partition == partition_of(run_id),
            EventRow.run == run_id,
            EventRow.seq > after,
        )
        .order_by(col(EventRow.seq))
        .limit(limit)
    )
    return [
        event_json(row.run, seq=row.seq, type=row.type, path=row.path, at_ns=row.at_ns, data=json.loads(row.data))
        for row in session.exec(query).all()
    ]


def run_status(session: Session, tenant: str, run_id: str) -> str | None:
    """Its status, or None when there is no such run."""
    query = select(RunRow.status).where(
        RunRow.tenant == tenant, RunRow.partition == partition_of(run_id), RunRow.id == run_id
    )
    return session.exec(query).first()


def open_runs(session: Session, tenant: str) -> int:
    """How many runs have not ended."""
    query = select(func.count()).where(RunRow.tenant == tenant, col(RunRow.status).not_in(TERMINAL))
    return session.exec(query).one()


def step_json(row: StepRow) -> dict[str, Any]:
    """A step instance as the API shows it."""
    detail: dict[str, Any] = _loaded(row.detail) or {}
    return {
        "path": row.path,
        "verb": row.verb,
        "status": row.status,
        "number": row.number,
        "failures": row.failures,
        "attempt": row.attempt,
        "node": row.node,
        "tier": row.tier,
        "decision_id": row.decision,
        "output": _loaded(row.output),
        "error": _loaded(row.error),
        "waiting": detail.pop("waiting", None) or [],
        "placement": _loaded(row.placement),
        "report": _loaded(row.report),
        "detail": detail,
        "labels": _loaded(row.labels),
        "started_at": rfc3339(row.started_ns),
        "finished_at": rfc3339(row.finished_ns),
    }


def _run_json(session: Session, row: RunRow) -> dict[str, Any]:
    definition = session.get(RunDefinitionRow, (row.tenant, row.partition, row.id))
    counts = session.exec(
        select(StepRow.status, func.count())
        .where(StepRow.tenant == row.tenant, StepRow.partition == row.partition, StepRow.run == row.id)
        .group_by(StepRow.status)
    ).all()
    return {
        "id": row.id,
        "status": row.status,
        "workflow": {"name": row.workflow_name, "version": row.workflow_version, "digest": row.workflow_digest},
        "principal": row.principal,
        "input": None if definition is None else _loaded(definition.input),
        "output": _loaded(row.output),
        "error": _loaded(row.error),
        "labels": _loaded(row.labels),
        "steps": {"total": sum(number for _, number in counts), "by_status": dict(sorted(counts))},
        "decisions": {"total": row.decisions, "denied": row.denied},
        "created_at": rfc3339(row.created_ns),
        "updated_at": rfc3339(row.updated_ns),
        "finished_at": rfc3339(row.finished_ns),
    }


def _loaded(text: str | None) -> Any:
    return None if text is None else json.loads(text)
