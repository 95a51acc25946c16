"""How the server does, what the documents it takes look like, and a page for each problem."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Response
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse

from controlplane.dependencies import AnyKey, ServicesDep
from controlplane.errors import Slug, not_found
from controlplane.runs.journal import JournalFailed
from controlplane.runs.queries import open_runs
from controlplane.strict_route import StrictRoute
from controlplane.workflows.spec import Workflow

router = APIRouter(tags=["status"], route_class=StrictRoute)
_PACKAGED = Path(__file__).with_name("problem_pages")
# The wheel carries the pages inside this package; a checkout has them in its documentation.
PAGES = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "docs" / "problems"


@router.get("/v1/status")
async def get_status(principal: AnyKey, services: ServicesDep) -> Any:
    """One look at the whole."""
    policy = services.policy_status()
    nodes = [] if services.inventory is None else services.inventory.view()
    return {
        "version": version("stockade"),
        "runs": {"open": await services.store.read(lambda session: open_runs(session, principal.tenant))},
        "nodes": {"ready": sum(node["status"] == "ready" for node in nodes)},
        "policy": {"revision": policy.revision, "engine": policy.engine, "healthy": policy.healthy},
    }


@router.get("/healthz")
async def healthz() -> Any:
    """The process answers."""
    return {"ok": True}


@router.get("/readyz", responses={503: {"description": "Something needed does not work"}})
async def readyz(services: ServicesDep) -> Response:
    """Whether runs can be admitted: the journal commits and policy decides."""
    checks = {"policy": services.policy_status().healthy, "journal": True}
    try:
        await services.journal.write([])
    except JournalFailed:
        checks["journal"] = False
    ready = all(checks.values())
    return JSONResponse({"ok": ready, "checks": checks}, status_code=200 if ready else 503)


@router.get("/schema/workflow.json")
async def workflow_schema() -> Any:
    """The JSON Schema of workflow documents, for editors."""
    return Workflow.model_json_schema(by_alias=True)


@router.get(
    "/problems/{slug}",
    response_class=Response,
    responses={200: {"content": {"text/markdown": {}}, "description": "What the problem means and what to do"}},
)
async def problem_page(slug: Annotated[str, PathParameter(pattern=r"^[a-z][a-z-]{0,63}$")]) -> Response:
    """What a problem type means."""
    if slug not in {one.value for one in Slug}:
        raise not_found("problem", slug)
    text = await anyio.to_thread.run_sync(_page, Slug(slug))
    return Response(text, media_type="text/markdown")


def _page(slug: Slug) -> str:
    return (PAGES / f"{slug.value}.md").read_text("utf-8")
