"""The gateway as a process of its own: the OpenAI routes and nothing else, with the control plane behind them.

    python -m controlplane gateway        STOCKADE_CONTROL_PLANE_URL, STOCKADE_GATEWAY_TOKEN_FILE

Tokens and streams then never share an interpreter with the journal's writer. It stores no key and has no
database: the keys of external services are asked of the control plane for each call, and are in its memory then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from controlplane.body_limit import BodyLimit
from controlplane.config import Settings
from controlplane.inference.gateway import endpoints
from controlplane.inference.gateway.assembly import ModelGateway
from controlplane.inference.gateway.performing import Performer
from controlplane.inference.gateway.remote import ControlPlaneLink, RelayDialer, RemoteAuthority
from controlplane.inference.gateway.upstream import AnyServers, ExternalServers, NodeServers

END_SECONDS = 5.0


def create_gateway(settings: Settings, token: str) -> Starlette:
    """The application; ``token`` is what the control plane knows this gateway by."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        link = ControlPlaneLink(settings.control_plane_url, token)
        authority = RemoteAuthority(link)
        external = ExternalServers(authority.key, frozenset(settings.private_hosts))
        app.state.model_gateway = ModelGateway(
            authority=authority,
            performer=Performer(authority, AnyServers(NodeServers(RelayDialer(link)), external)),
            deadline_seconds=settings.model_seconds,
            body_bytes_most=settings.max_model_body_bytes,
        )
        async with anyio.create_task_group() as group:
            group.start_soon(authority.serve)
            try:
                yield
            finally:
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await authority.finish(END_SECONDS)
                    with anyio.move_on_after(END_SECONDS):
                        await external.close()
                        await link.close()

    app = Starlette(routes=[*endpoints.routes(), Route("/healthz", _healthy)], lifespan=lifespan)
    app.add_middleware(BodyLimit, max_bytes=settings.max_model_body_bytes, larger={})
    return app


async def _healthy(_: Request) -> Response:
    """It answers; whether the control plane does, its calls say."""
    return PlainTextResponse("ok")
