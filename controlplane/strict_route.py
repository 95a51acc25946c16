"""The route class of every JSON endpoint: who asks is checked first, then the body is parsed strictly.

    APIRouter(route_class=StrictRoute)

What two JSON parsers could read differently (duplicate keys, NaN, lone surrogates, NUL, huge numbers) is refused
before pydantic sees it; unknown query parameters are refused; a POST with an ``Idempotency-Key`` happens once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from controlplane.errors import field_problem, invalid_request, unauthorized
from controlplane.idempotency import Idempotency
from controlplane.identity import Principal, bearer_key
from controlplane.store import canonical
from controlplane.workflows.documents import parse_document
from controlplane.workflows.problem_values import Problem, WorkflowInvalid, child, did_you_mean

_INTEGER_MAX = 2**63 - 1


class _ParsedRequest(Request):
    """A request whose JSON was parsed already."""

    document: dict[str, Any]

    async def json(self) -> Any:
        return self.document


class StrictRoute(APIRoute):
    """See the module."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        original = super().get_route_handler()
        required = self.body_field is not None and self.body_field.field_info.is_required()
        # Uploads are streamed past us; sending one again is harmless, for equal bytes are stored once.
        streamed = "requestBody" in (self.openapi_extra or {})
        known = frozenset(field.alias for field in self.dependant.query_params)

        async def handler(request: Request) -> Response:
            principal = await _identify(request)
            _refuse_unknown(request, known)
            digest = ""
            if self.body_field is not None:
                if principal is None:
                    raise unauthorized()
                parsed = _ParsedRequest(request.scope, request.receive)
                raw = await parsed.body()
                if raw or required:
                    parsed.document = strict_json(raw)
                    digest = hashlib.sha256(canonical(parsed.document).encode()).hexdigest()
                request = parsed
            key = request.headers.get("idempotency-key")
            if request.method != "POST" or key is None or principal is None or streamed:
                return await original(request)
            identity = f"POST {request.url.path}?{request.url.query} {digest}"
            idempotency: Idempotency = request.app.state.services.idempotency

            def perform(reserved: str) -> Coroutine[Any, Any, Response]:
                request.state.reserved_id = reserved
                return original(request)

            return await idempotency.once(principal.tenant, principal.id, key, identity, perform)

        return handler


def strict_json(raw: bytes) -> dict[str, Any]:
    """The JSON object in ``raw``. Raises: ApiError invalid-request."""
    try:
        document = parse_document(raw)
    except WorkflowInvalid as error:
        raise invalid_request(error.problems, "The body is not a JSON object this API can take.") from None
    if problems := _numbers(document):
        raise invalid_request(problems, "The body has numbers that cannot be kept exactly.")
    return document


def _numbers(document: dict[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    stack: list[tuple[str, Any]] = [("", document)]
    while stack:
        where, value = stack.pop()
        if isinstance(value, dict):
            stack.extend((child(where, key), member) for key, member in value.items())
        elif isinstance(value, list):
            stack.extend((child(where, index), member) for index, member in enumerate(value))
        elif isinstance(value, float) and value in (float("inf"), float("-inf")):
            problems.append(field_problem(where, "the number is out of range", "send it as text", "json"))
        elif isinstance(value, int) and not -_INTEGER_MAX <= value <= _INTEGER_MAX:
            problems.append(field_problem(where, "the integer needs more than 64 bits", "send it as text", "json"))
    return problems


async def _identify(request: Request) -> Principal | None:
    key = bearer_key(request)
    found: Principal | None = await request.app.state.services.identities.authenticate(key) if key else None
    return found


def _refuse_unknown(request: Request, known: frozenset[str]) -> None:
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        raise invalid_request(
            field_problem(
                "",
                f"there is no query parameter {name[:80]!r}",
                did_you_mean(name[:80], known) or f"known are: {', '.join(sorted(known)) or 'none'}",
                "extra_forbidden",
            )
            for name in unknown[:20]
        )
