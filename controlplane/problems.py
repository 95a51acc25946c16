"""Makes every failure of the API an RFC 9457 answer (``application/problem+json``).

ApiError                 as it says
WorkflowInvalid          422 invalid-workflow, the problems as errors
RequestValidationError   422 invalid-request, pointers made of FastAPI's loc
HTTPException            404 / 405 and others of the framework
JournalFailed            503 not-stored
anything else            500 internal, without a word about the cause; the log has it
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from controlplane.errors import ApiError, Slug, field_problem, invalid_request, invalid_workflow, not_stored
from controlplane.runs.journal import JournalFailed
from controlplane.workflows.problem_values import Problem, WorkflowInvalid, child

MEDIA_TYPE = "application/problem+json"
_MAX_ERRORS = 50
_log = structlog.get_logger(__name__)


def problem_response(error: ApiError, instance: str) -> Response:
    """The answer for ``error``."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status in (429, 503):
        headers["X-Should-Retry"] = "true" if error.retryable else "false"
    content = json.dumps(error.to_json(_printable(instance)), ensure_ascii=True).encode()
    return Response(content, status_code=error.status, media_type=MEDIA_TYPE, headers=headers)


def install_problem_handlers(app: FastAPI) -> None:
    """Register the handlers above on ``app``."""

    async def api_error(request: Request, error: Exception) -> Response:
        return problem_response(as_api_error(error), request.url.path)

    async def internal(request: Request, error: Exception) -> Response:
        _log.error("request_failed", method=request.method, path=request.url.path, exc_info=error)
        return problem_response(as_api_error(error), request.url.path)

    for kind in (ApiError, WorkflowInvalid, RequestValidationError, HTTPException, JournalFailed):
        app.add_exception_handler(kind, api_error)
    app.add_exception_handler(Exception, internal)


def as_api_error(error: Exception) -> ApiError:
    """The refusal that ``error`` amounts to."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, WorkflowInvalid):
        return invalid_workflow(error.problems)
    if isinstance(error, RequestValidationError):
        return invalid_request([_from_pydantic(one) for one in error.errors()[:_MAX_ERRORS]])
    if isinstance(error, HTTPException):
        return _from_http(error)
    if isinstance(error, JournalFailed):
        return not_stored()
    return ApiError(Slug.INTERNAL, "The platform failed while answering; it is not your request. The log has more.")


def _from_pydantic(error: Any) -> Problem:
    location: Sequence[str | int] = error["loc"]
    kind = error["type"]
    where, rest = (str(location[0]), location[1:]) if location else ("body", ())
    if kind == "json_invalid":
        return field_problem("", f"not JSON: {error.get('ctx', {}).get('error', '')}", "send one JSON value", "json")
    hint = "see the schema of this operation in /openapi.json"
    if kind == "extra_forbidden":
        hint = "remove it, or check its spelling"
    elif kind == "missing":
        hint = "add it"
    message = str(error["msg"])
    if where == "body":
        return field_problem(child("", *rest), message, hint, kind)
    name = ".".join(str(part) for part in rest)
    return field_problem("", f"{where} parameter {_printable(name)!r}: {message}", hint, kind)


def _from_http(error: HTTPException) -> ApiError:
    if error.status_code == 404:
        return ApiError(Slug.NOT_FOUND, "There is nothing at this address. /openapi.json lists all addresses.")
    if error.status_code == 405:
        detail = "This address does not take this method. /openapi.json lists what it takes."
        return ApiError(Slug.METHOD_NOT_ALLOWED, detail, headers=error.headers)
    if error.status_code >= 500:
        return ApiError(Slug.INTERNAL, "The platform failed while answering.", status=error.status_code)
    return ApiError(Slug.INVALID_REQUEST, str(error.detail), status=error.status_code, headers=error.headers)


def _printable(text: str) -> str:
    """Text that can be encoded and shown on one line, whatever the caller sent."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:500])
