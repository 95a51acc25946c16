"""/v1/runs: submit, validate, look, follow, cancel, approve."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from controlplane.dependencies import Approver, Reader, RunId, Runner, ServicesDep, StepPath
from controlplane.errors import field_problem, forbidden, invalid_input, invalid_request, not_found, not_stored
from controlplane.identity import Principal
from controlplane.ids import new_id
from controlplane.pages import LIMIT_MAX, Cursor, Limit
from controlplane.runs import queries
from controlplane.runs.event_stream import event_stream
from controlplane.services import Services
from controlplane.strict_route import StrictRoute

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=StrictRoute)

RunStatus = Literal["pending", "running", "waiting", "cancelling", "completed", "failed", "cancelled"]
_SEQ_MAX = 2**62
_EXAMPLE: dict[str, Any] = {
    "workflow": {
        "stockade": "1",
        "name": "hello",
        "steps": [
            {
                "id": "greet",
                "code": {"python": "def greet(who): return 'hello ' + who", "call": "greet", "args": ["${input.who}"]},
            }
        ],
    },
    "input": {"who": "world"},
    "labels": {"team": "search"},
}
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=64)]
WorkflowName = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*@[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=130)
]


class RunRequest(BaseModel):
    """A definition, or the ``name@version`` of a published one, and its input."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})
    workflow: dict[str, Any] | WorkflowName
    input: Any = None
    labels: dict[Label, Annotated[str, StringConstraints(max_length=256)]] = Field(default={}, max_length=32)


class CancelRequest(BaseModel):
    """Why, for the people who read the run later."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "wrong input"}]})
    reason: Annotated[str, StringConstraints(max_length=1024)] = ""


class ApprovalRequest(BaseModel):
    """What the person has to say about it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"comment": "checked the diff"}]})
    comment: Annotated[str, StringConstraints(max_length=4096)] = ""


@router.post("", status_code=201)
async def submit_run(
    body: RunRequest, principal: Runner, services: ServicesDep, request: Request, response: Response
) -> Any:
    """Admit a run. It is durable when this answers."""
    reserved = getattr(request.state, "reserved_id", None)
    run_id = new_id("run") if reserved is None else f"run_{reserved}"
    response.headers["Location"] = f"/v1/runs/{run_id}"
    if reserved is not None:  # the same request may have made it just before the server was killed
        made = await services.store.read(lambda session: queries.get_run(session, principal.tenant, run_id))
        if made is not None:
            return made
    document = await services.definitions.document(principal.tenant, body.workflow)
    compiled = await services.definitions.compile(document)
    if problems := compiled.check_input(body.input):
        raise invalid_input(problems)
    await services.runs.submit(principal, run_id, compiled, document, body.input, body.labels)
    return await _run(services, principal, run_id)


@router.get("")
async def list_runs(
    principal: Reader,
    services: ServicesDep,
    status: RunStatus | None = None,
    workflow: Annotated[str | None, Query(max_length=64, pattern=r"^[a-z][a-z0-9-]*$")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Any:
    """Newest first."""
    return await services.store.read(
        lambda session: queries.list_runs(
            session, principal.tenant, status=status, workflow=workflow, cursor=cursor, limit=limit
        )
    )


@router.get("/{run_id}")
async def get_run(run_id: RunId, principal: Reader, services: ServicesDep) -> Any:
    """One run."""
    return await _run(services, principal, run_id)


@router.get("/{run_id}/steps")
async def list_steps(
    run_id: RunId, principal: Reader, services: ServicesDep, cursor: Cursor = None, limit: Limit = 100
) -> Any:
    """Step instances, ordered by path."""
    await _must_exist(services, principal, run_id)
    return await services.store.read(
        lambda session: queries.list_steps(session, principal.tenant, run_id, cursor=cursor, limit=limit)
    )


@router.get("/{run_id}/steps/{path:path}")
async def get_step(run_id: RunId, path: StepPath, principal: Reader, services: ServicesDep) -> Any:
    """One step instance."""
    return await _step(services, principal, run_id, path)


@router.get(
    "/{run_id}/events",
    responses={200: {"content": {"application/json": {}, "text/event-stream": {}}, "description": "Events in order"}},
)
async def get_events(
    run_id: RunId,
    principal: Reader,
    services: ServicesDep,
    request: Request,
    after: Annotated[int, Query(ge=0, le=_SEQ_MAX)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = LIMIT_MAX,
) -> Any:
    """With ``Accept: text/event-stream`` a stream until the run ends, resumable by ``Last-Event-ID``; else a page."""
    await _must_exist(services, principal, run_id)
    if "text/event-stream" in request.headers.get("accept", ""):
        last = request.headers.get("last-event-id", "")
        if last and not (last.isascii() and last.isdigit() and len(last) <= 18):
            raise invalid_request([field_problem("", "Last-Event-ID is not a sequence number", "send the last id")])
        stream = event_stream(
            services.store,
            services.runs.hub,
            principal.tenant,
            run_id,
            int(last) if last else after,
            services.settings.sse_heartbeat_seconds,
        )
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    events = await services.store.read(
        lambda session: queries.events_after(session, principal.tenant, run_id, after, limit + 1)
    )
    more = len(events) > limit
    return {"data": events[:limit], "next_cursor": str(events[limit - 1]["seq"]) if more else None}


@router.get(
    "/{run_id}/logs",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "All stored output of the current attempt"}},
)
async def get_logs(
    run_id: RunId,
    principal: Reader,
    services: ServicesDep,
    path: Annotated[str, Query(min_length=1, max_length=2048)],
    stream: Literal["stdout", "stderr"] = "stdout",
) -> Response:
    """What the step's current attempt wrote."""
    step = await _step(services, principal, run_id, path)
    headers = {"X-Content-Type-Options": "nosniff"}
    if step["attempt"] is None:
        return Response(b"", media_type="text/plain", headers=headers)
    return StreamingResponse(services.output.read(step["attempt"], stream), media_type="text/plain", headers=headers)


@router.post("/{run_id}:cancel", status_code=202)
async def cancel_run(run_id: RunId, principal: Runner, services: ServicesDep, body: CancelRequest | None = None) -> Any:
    """Begin to cancel; follow the events for the end."""
    await _must_exist(services, principal, run_id)
    begun = await services.runs.cancel(principal, run_id, body.reason if body else "")
    shown = await _run(services, principal, run_id)
    if not begun and shown["status"] not in queries.TERMINAL:
        raise not_stored()
    return shown


@router.post("/{run_id}/steps/{path:path}:approve")
async def approve_step(
    run_id: RunId, path: StepPath, principal: Approver, services: ServicesDep, body: ApprovalRequest | None = None
) -> Any:
    """Say yes to a waiting approval. Only a person can."""
    return await _decide(services, principal, run_id, path, True, body)


@router.post("/{run_id}/steps/{path:path}:reject")
async def reject_step(
    run_id: RunId, path: StepPath, principal: Approver, services: ServicesDep, body: ApprovalRequest | None = None
) -> Any:
    """Say no to a waiting approval. Only a person can."""
    return await _decide(services, principal, run_id, path, False, body)


validate_router = APIRouter(tags=["runs"], route_class=StrictRoute)


@validate_router.post("/v1/runs:validate")
async def validate_run(body: RunRequest, principal: Runner, services: ServicesDep) -> Any:
    """What submitting this would do: problems, policy, and where each step would be placed. Nothing happens."""
    document = await services.definitions.document(principal.tenant, body.workflow)
    return await services.runs.validate(principal, document, body.input)


async def _decide(
    services: Services, principal: Principal, run_id: str, path: str, approve: bool, body: ApprovalRequest | None
) -> Any:
    if principal.kind != "person":
        raise forbidden("approve", "Approvals are for people, and this is a service's key. Use a person's key.")
    await _step(services, principal, run_id, path)
    await services.runs.decide_approval(principal, run_id, path, approve, body.comment if body else "")
    return await _step(services, principal, run_id, path)


async def _run(services: Services, principal: Principal, run_id: str) -> dict[str, Any]:
    shown = await services.store.read(lambda session: queries.get_run(session, principal.tenant, run_id))
    if shown is None:
        raise not_found("run", run_id, "GET /v1/runs lists them.")
    return shown


async def _must_exist(services: Services, principal: Principal, run_id: str) -> None:
    status = await services.store.read(lambda session: queries.run_status(session, principal.tenant, run_id))
    if status is None:
        raise not_found("run", run_id, "GET /v1/runs lists them.")


async def _step(services: Services, principal: Principal, run_id: str, path: str) -> dict[str, Any]:
    shown = await services.store.read(lambda session: queries.get_step(session, principal.tenant, run_id, path))
    if shown is None:
        await _must_exist(services, principal, run_id)
        raise not_found("step", path, f"GET /v1/runs/{run_id}/steps lists them.")
    return shown
