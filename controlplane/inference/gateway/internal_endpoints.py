"""The control plane's side of a gateway process: ``LocalAuthority`` and the relay, over HTTP (``wire.py``)."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from controlplane.errors import field_problem as problem
from controlplane.errors import invalid_request, unauthorized
from controlplane.inference.gateway import wire
from controlplane.inference.gateway.assembly import LocalGateway
from controlplane.inference.gateway.refusals import GatewayRefused
from controlplane.inference.gateway.upstream import HttpAnswer, Unreachable
from controlplane.nodes.dialing import NodeUnreachable
from controlplane.tokens import hash_token
from dataplane.serving.tokens import Target

T = TypeVar("T")


def routes() -> list[Route]:
    """To be mounted on the control plane's application, whose state has ``local_gateway``."""
    return [
        Route(f"{wire.PREFIX}/admit", admit, methods=["POST"]),
        Route(f"{wire.PREFIX}/models", models, methods=["POST"]),
        Route(f"{wire.PREFIX}/key", key, methods=["POST"]),
        Route(f"{wire.PREFIX}/usage", usage, methods=["POST"]),
        Route(wire.PREFIX + "/nodes/{node}/models/{replica}/{path:path}", relay, methods=["POST"]),
    ]


def _gateway(request: Request) -> LocalGateway:
    """Who calls is the gateway process. Raises: ApiError."""
    gateway: LocalGateway = request.app.state.local_gateway
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(hash_token(token), gateway.token_hash):
        raise unauthorized("This is for the gateway process, which sends its token as a bearer.")
    return gateway


async def _body(request: Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_request([problem("", str(error)[:500], "use a gateway of this version")]) from None


def _answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(wire.encoded(value), status_code=status, headers=headers, media_type="application/json")


async def admit(request: Request) -> Response:
    """Who calls, what policy says; the decision is durable when this answers."""
    gateway = _gateway(request)
    asked = await _body(request, wire.AdmitRequest)
    try:
        return _answer(wire.Admitted.of(await gateway.routes.authority.admit(asked.key, asked.request())))
    except GatewayRefused as no:
        return _answer(wire.Refusal.of(no), no.status)


async def models(request: Request) -> Response:
    """The names a key can call."""
    authority = _gateway(request).routes.authority
    asked = await _body(request, wire.ModelsRequest)
    try:
        if asked.name is not None:
            return _answer([await authority.model(asked.key, asked.name)])
        return _answer(await authority.models(asked.key))
    except GatewayRefused as no:
        return _answer(wire.Refusal.of(no), no.status)


async def key(request: Request) -> Response:
    """The key of an external service, for one call."""
    gateway = _gateway(request)
    asked = await _body(request, wire.KeyRequest)
    known = gateway.replicas.of(asked.tenant, asked.deployment)
    replica = next((one for one in known if one.id == asked.replica), None)
    if replica is None:
        return _answer(wire.KeyAnswer(why="it is no more"))
    try:
        return _answer(wire.KeyAnswer(key=await gateway.routes.authority.key(replica)))
    except Unreachable as missing:
        return _answer(wire.KeyAnswer(why=str(missing)))


async def usage(request: Request) -> Response:
    """Tokens that were used; a batch that comes again is answered and not counted."""
    gateway = _gateway(request)
    batch = await _body(request, wire.UsageBatch)
    gateway.meter.add_batch(batch.id, batch.used)
    return Response(status_code=204)


async def relay(request: Request) -> Response:
    """On to a node, and its answer back as it comes."""
    gateway = _gateway(request)
    target = Target(tenant=request.headers.get(wire.TENANT, ""), kind="models", name=request.path_params["replica"])
    try:
        idle = min(3600.0, float(request.headers.get(wire.IDLE, "60")))
        answer = await gateway.dialer.post(
            request.path_params["node"],
            target,
            f"/{request.path_params['path']}",
            await request.body(),
            idle_seconds=idle,
        )
    except (NodeUnreachable, ValueError) as gone:
        # Told apart from a server's own 502 by the header, which the relay lets no server set.
        return _answer(wire.NoRelay(why=str(gone)), 502, {wire.NOT_RELAYED: "1"})
    upstream = HttpAnswer(answer)

    async def body() -> AsyncIterator[bytes]:
        try:
            while chunk := await upstream.read():
                yield chunk
        finally:
            upstream.close()

    headers = {} if upstream.retry_after is None else {"retry-after": upstream.retry_after}
    return StreamingResponse(
        body(), status_code=answer.status, headers=headers, media_type=answer.content_type or "application/json"
    )
