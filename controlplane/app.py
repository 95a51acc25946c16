"""The HTTP application: routers, problem answers, the body limit, and the services for as long as it lives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from controlplane import account_endpoints, status_endpoints
from controlplane.artifacts import endpoints as artifact_endpoints
from controlplane.authorization import endpoints as decision_endpoints
from controlplane.authorization.opa import endpoints as opa_endpoints
from controlplane.body_limit import BodyLimit
from controlplane.config import Settings
from controlplane.inference import deployment_endpoints, usage_endpoints
from controlplane.inference.gateway import endpoints as model_endpoints
from controlplane.inference.gateway import internal_endpoints
from controlplane.nodes import endpoints as node_endpoints
from controlplane.nodes import tunnel_endpoint, wire
from controlplane.openapi import describe
from controlplane.problems import install_problem_handlers
from controlplane.runs import endpoints as run_endpoints
from controlplane.secrets import endpoints as secret_endpoints
from controlplane.services import Services, build_services
from controlplane.tools import endpoints as tool_endpoints
from controlplane.tools import mcp_endpoints
from controlplane.workflows import endpoints as workflow_endpoints

_NODE_WIRE = "/node/"
ServicesFactory = Callable[[Settings], AbstractAsyncContextManager[Services]]


def create_app(settings: Settings, services_factory: ServicesFactory = build_services) -> FastAPI:
    """The application. Its lifespan makes the services and puts them on ``app.state.services``."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with services_factory(settings) as services:
            app.state.services = services
            if services.engine is not None:
                app.state.local_gateway = services.engine.inference
                app.state.model_gateway = services.engine.inference.routes
            yield

    app = FastAPI(title="Stockade", version=version("stockade"), lifespan=lifespan, docs_url=None, redoc_url=None)
    for router in (
        run_endpoints.validate_router,
        run_endpoints.router,
        node_endpoints.router,
        artifact_endpoints.router,
        decision_endpoints.router,
        secret_endpoints.router,
        tool_endpoints.router,
        mcp_endpoints.router,
        deployment_endpoints.router,
        usage_endpoints.router,
        workflow_endpoints.router,
        account_endpoints.router,
        status_endpoints.router,
    ):
        app.include_router(router)
    # First: these are what is called most, and finding a route takes as long as all before it.
    app.router.routes[:0] = [
        *wire.routes(),
        *model_endpoints.routes(),
        *tunnel_endpoint.routes(),
        *internal_endpoints.routes(),
        *opa_endpoints.routes(),
    ]
    install_problem_handlers(app)
    describe(app)
    larger = {
        "/v1/artifacts": settings.max_artifact_bytes,
        f"{_NODE_WIRE}v1/artifacts": settings.max_artifact_bytes,
        _NODE_WIRE: settings.max_node_body_bytes,
        "/internal/gateway/": settings.max_model_body_bytes,
        **model_endpoints.large_bodies(settings.max_model_body_bytes),
    }
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, larger=larger)
    return app
