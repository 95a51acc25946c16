"""The OpenAI-compatible routes, under ``/openai/v1`` and ``/v1``: plain ASGI, so that tokens pass through little.

    POST …/chat/completions  …/completions  …/embeddings        GET …/models  …/models/{name}

Errors have OpenAI's form. A caller that goes away ends its call at the server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controlplane.errors import ApiError
from controlplane.identity import bearer_key
from controlplane.inference.gateway import reading
from controlplane.inference.gateway.assembly import ModelGateway
from controlplane.inference.gateway.authority import Listed
from controlplane.inference.gateway.performing import Exchange
from controlplane.inference.gateway.reading import BadAnswer
from controlplane.inference.gateway.refusals import GatewayRefused
from controlplane.inference.gateway.requests import Operation, read
from controlplane.inference.gateway.upstream import Unreachable

PREFIXES = ("/openai/v1", "/v1")
log = structlog.get_logger(__name__)
_Work = Callable[[Request, Send], Awaitable[None]]


def routes() -> list[Route]:
    """To be mounted on an application whose state has the ``model_gateway``."""
    found = []
    for prefix in PREFIXES:
        found += [
            Route(f"{prefix}/chat/completions", _Endpoint(_call(Operation.CHAT)), methods=["POST"]),
            Route(f"{prefix}/completions", _Endpoint(_call(Operation.COMPLETION)), methods=["POST"]),
            Route(f"{prefix}/embeddings", _Endpoint(_call(Operation.EMBEDDING)), methods=["POST"]),
            Route(f"{prefix}/models", _Endpoint(_models), methods=["GET"]),
            Route(f"{prefix}/models/{{name:path}}", _Endpoint(_model), methods=["GET"]),
        ]
    return found


def large_bodies(most: int) -> dict[str, int]:
    """Path prefixes whose requests may be longer than others."""
    return {f"{prefix}/{rest}": most for prefix in PREFIXES for rest in ("chat/", "completions", "embeddings")}


class _Endpoint:
    """An ASGI application that answers refusals in OpenAI's form, and is cancelled when its caller goes away."""

    def __init__(self, work: _Work) -> None:
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        started = False

        async def watched(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._work(request, watched)
        except ClientDisconnect:
            return
        except (GatewayRefused, ApiError) as error:
            no = error if isinstance(error, GatewayRefused) else GatewayRefused("too_large", error.detail)
        except Exception:
            if started:
                raise
            log.exception("a model call failed in the gateway", path=request.url.path)
            no = GatewayRefused("internal", "The gateway failed; it is not your request. The log has more.")
        else:
            return
        await _json(no.to_json(), no.status, no.headers())(scope, receive, send)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(reading.encode(value), status_code=status, headers=headers, media_type="application/json")


def _gateway(request: Request) -> ModelGateway:
    gateway: ModelGateway = request.app.state.model_gateway
    return gateway


async def _models(request: Request, send: Send) -> None:
    listed = await _gateway(request).authority.models(bearer_key(request))
    answer = {"object": "list", "data": [_listed(one) for one in listed]}
    await _json(answer)(request.scope, request.receive, send)


async def _model(request: Request, send: Send) -> None:
    found = await _gateway(request).authority.model(bearer_key(request), request.path_params["name"])
    await _json(_listed(found))(request.scope, request.receive, send)


def _listed(one: Listed) -> dict[str, Any]:
    return {
        "id": one.name,
        "object": "model",
        "created": 0,
        "owned_by": "stockade",
        "ready": one.is_ready,
        "context_length": one.context_tokens,
        "modalities": list(one.modalities),
    }


def _call(operation: Operation) -> _Work:
    async def work(request: Request, send: Send) -> None:
        gateway = _gateway(request)
        key = bearer_key(request)
        asked = read(operation, await _body(request, gateway.body_bytes_most))
        refused: GatewayRefused | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when_gone, request.receive, group.cancel_scope)
            try:
                admission = await gateway.authority.admit(key, asked)
                exchange = await gateway.performer.perform(
                    admission, asked, deadline_seconds=gateway.deadline_seconds, waits=False
                )
                try:
                    if asked.is_stream:
                        await _stream(exchange, send, with_usage=asked.wants_usage)
                    else:
                        response = _json(exchange.whole, headers=_headers(exchange))
                        await response(request.scope, request.receive, send)
                finally:
                    exchange.close()
            except GatewayRefused as no:
                refused = no
            group.cancel_scope.cancel()
        if refused is not None:  # raised here, where no group wraps it
            raise refused

    return work


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise GatewayRefused("too_large", f"The body has more than {most:,} bytes.", fix="Send less.")
    return bytes(body)


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _headers(exchange: Exchange) -> dict[str, str]:
    return {
        "x-stockade-decision": exchange.decision,
        "x-stockade-model": exchange.deployment,
        "x-stockade-replica": exchange.replica.id,
    }


async def _stream(exchange: Exchange, send: Send, *, with_usage: bool) -> None:
    headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", **_headers(exchange)}
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    try:
        while (chunk := await exchange.next()) is not None:
            if not with_usage:
                if not chunk.get("choices"):
                    continue  # the chunk with the usage, which only we asked for
                chunk.pop("usage", None)
            await send({"type": "http.response.body", "body": _event(reading.encode(chunk)), "more_body": True})
        end = _event(b"[DONE]")
    except (BadAnswer, Unreachable) as broken:
        said = f"The answer of {exchange.deployment!r} broke off: {broken}."
        no = GatewayRefused("model_failed", said, fix="Try again.", decision=exchange.decision)
        end = _event(reading.encode(no.to_json()))
    await send({"type": "http.response.body", "body": end, "more_body": False})
    if exchange.is_complete:
        await exchange.drain()


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
