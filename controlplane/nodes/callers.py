"""Who calls the node wire and what it says: shared by its endpoints. Raw bodies, msgspec."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from controlplane.engine import Engine
from controlplane.errors import field_problem, invalid_request, unauthorized
from controlplane.nodes.node import Node
from controlplane.services import Services
from controlplane.tokens import hash_token

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


def parts_of(request: Request) -> tuple[Services, Engine]:
    services: Services = request.app.state.services
    assert services.engine is not None  # noqa: S101 - the wire is mounted only with an engine
    return services, services.engine


def bearer_of(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise unauthorized("Nodes send their token as a bearer.")
    return token


def node_of(request: Request, engine: Engine) -> Node:
    node = engine.inventory.by_token(hash_token(bearer_of(request)))
    if node is None:
        raise unauthorized("This node is not registered (any more): register again with the join token.")
    return node


async def body_of(request: Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:500]
        raise invalid_request([field_problem("", why, "send what dataplane.protocol says")]) from None


def answered(value: Any) -> Response:
    return Response(_encode(value), media_type="application/json")
