"""Where an OPA server gets the bundle that it decides with: ``GET /policy/v1/bundle.tar.gz``, with the shared token."""

from __future__ import annotations

import hmac

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from controlplane.authorization.opa.address import read_token
from controlplane.errors import not_found, unauthorized
from controlplane.services import Services


def routes() -> list[Route]:
    """What OPA calls, to be mounted on the application."""
    return [Route("/policy/v1/bundle.tar.gz", bundle, methods=["GET"])]


async def bundle(request: Request) -> Response:
    """The bundle, or 304 if OPA has this revision. Raises: ApiError without the token, or where no OPA decides."""
    services: Services = request.app.state.services
    engine, path = services.engine, services.settings.opa_token_file
    if engine is None or not engine.opa_bundle or path is None:
        raise not_found("bundle", "bundle.tar.gz", "It is served while STOCKADE_POLICY_ENGINE is opa.")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    token = await anyio.to_thread.run_sync(read_token, path)
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), token.encode()):
        raise unauthorized("OPA fetches its bundle with the token of STOCKADE_OPA_TOKEN_FILE.")
    tag = f'"{engine.policy.revision}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag})
    return Response(engine.opa_bundle, media_type="application/gzip", headers={"etag": tag})
