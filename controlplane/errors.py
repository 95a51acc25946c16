"""What the API refuses, as exceptions that say what happened and what to do next.

    raise not_found("run", run_id)             -> 404 application/problem+json, type /problems/not-found

Each slug has one page, ``docs/problems/<slug>.md``. ``problems.py`` makes the answers. Details are shown to the
caller: they never quote a secret, a key, or the platform's own internals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from controlplane.authorization.values import Decision
from controlplane.workflows.problem_values import Problem


class Slug(StrEnum):
    """Every problem type; the value is the last part of its ``type``."""

    NOT_FOUND = "not-found"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    INVALID_REQUEST = "invalid-request"
    INVALID_WORKFLOW = "invalid-workflow"
    INVALID_INPUT = "invalid-input"
    INVALID_TOOL = "invalid-tool"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    POLICY_DENIED = "policy-denied"
    POLICY_UNAVAILABLE = "policy-unavailable"
    CONFLICT = "conflict"
    PRECONDITION_FAILED = "precondition-failed"
    IDEMPOTENCY_MISMATCH = "idempotency-mismatch"
    IDEMPOTENCY_IN_FLIGHT = "idempotency-in-flight"
    TOO_LARGE = "too-large"
    NOT_YET = "not-yet"
    NOT_STORED = "not-stored"
    INTERNAL = "internal"


KINDS: Mapping[Slug, tuple[int, str]] = {
    Slug.NOT_FOUND: (404, "Not found"),
    Slug.METHOD_NOT_ALLOWED: (405, "Method not allowed"),
    Slug.INVALID_REQUEST: (422, "The request is not valid"),
    Slug.INVALID_WORKFLOW: (422, "The workflow is not valid"),
    Slug.INVALID_INPUT: (422, "The input is not valid"),
    Slug.INVALID_TOOL: (422, "The tool is not valid"),
    Slug.UNAUTHORIZED: (401, "An API key is needed"),
    Slug.FORBIDDEN: (403, "The key may not do this"),
    Slug.POLICY_DENIED: (403, "Policy denied this"),
    Slug.POLICY_UNAVAILABLE: (503, "Policy cannot answer now"),
    Slug.CONFLICT: (409, "Conflict"),
    Slug.PRECONDITION_FAILED: (412, "It is not what you saw"),
    Slug.IDEMPOTENCY_MISMATCH: (422, "The idempotency key was used for another request"),
    Slug.IDEMPOTENCY_IN_FLIGHT: (409, "The first request with this idempotency key is still running"),
    Slug.TOO_LARGE: (413, "The body is too large"),
    Slug.NOT_YET: (501, "Not there yet"),
    Slug.NOT_STORED: (503, "It could not be stored"),
    Slug.INTERNAL: (500, "The platform failed"),
}
"""Slug -> usual HTTP status and title."""


class ApiError(Exception):
    """One refusal. ``status`` and ``title`` come from the slug unless given; ``retry_after`` is in seconds."""

    def __init__(
        self,
        slug: Slug,
        detail: str,
        *,
        status: int | None = None,
        title: str | None = None,
        errors: Iterable[Problem] = (),
        decision_id: str | None = None,
        retryable: bool = False,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{slug.value}: {detail}")
        self.slug = slug
        self.status = status or KINDS[slug][0]
        self.title = title or KINDS[slug][1]
        self.detail = detail
        self.errors = tuple(errors)
        self.decision_id = decision_id
        self.retryable = retryable
        self.retry_after = retry_after
        self.headers = dict(headers or {})

    def to_json(self, instance: str) -> dict[str, Any]:
        """The RFC 9457 object; ``instance`` is the path of the request."""
        return problem_json(
            self.slug,
            self.detail,
            instance,
            status=self.status,
            title=self.title,
            errors=self.errors,
            decision_id=self.decision_id,
            retryable=self.retryable,
        )


def problem_json(
    slug: Slug,
    detail: str,
    instance: str,
    *,
    status: int,
    title: str,
    errors: Iterable[Problem] = (),
    decision_id: str | None = None,
    retryable: bool = False,
) -> dict[str, Any]:
    """The members of a problem answer, without the ones that have no value."""
    body: dict[str, Any] = {
        "type": f"/problems/{slug.value}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": instance,
        "errors": [error_json(problem) for problem in errors],
        "retryable": retryable,
    }
    if decision_id is not None:
        body["decision_id"] = decision_id
    return body


def error_json(problem: Problem) -> dict[str, Any]:
    """One element of ``errors``."""
    body: dict[str, Any] = {"pointer": problem.pointer, "message": problem.message, "hint": problem.hint}
    if problem.line is not None:
        body |= {"line": problem.line, "column": problem.column, "excerpt": problem.excerpt}
    return body


def field_problem(pointer: str, message: str, hint: str, kind: str = "schema") -> Problem:
    """A ``Problem`` in one line."""
    return Problem(pointer=pointer, message=message, hint=hint, type=kind)


def not_found(what: str, name: str, hint: str = "") -> ApiError:
    """Nothing of that name is visible to the caller."""
    shown = name if len(name) <= 200 else name[:200] + "…"
    return ApiError(Slug.NOT_FOUND, f"There is no {what} {shown!r} here. {hint}".strip())


def invalid_request(errors: Iterable[Problem], detail: str = "Some parts of the request are not valid.") -> ApiError:
    """The request does not have the documented form."""
    return ApiError(Slug.INVALID_REQUEST, detail, errors=errors)


def invalid_workflow(errors: Iterable[Problem]) -> ApiError:
    """The document is not a valid workflow; ``errors`` has every problem found."""
    found = tuple(errors)
    return ApiError(Slug.INVALID_WORKFLOW, f"The workflow has {_count(len(found), 'problem')}.", errors=found)


def invalid_input(errors: Iterable[Problem]) -> ApiError:
    """The run's input does not fit the workflow's ``input`` schema."""
    found = tuple(errors)
    return ApiError(Slug.INVALID_INPUT, f"The input has {_count(len(found), 'problem')}.", errors=found)


def invalid_tool(errors: Iterable[Problem]) -> ApiError:
    """The tool's specification cannot be registered."""
    found = tuple(errors)
    return ApiError(Slug.INVALID_TOOL, f"The tool has {_count(len(found), 'problem')}.", errors=found)


def policy_denied(decision: Decision) -> ApiError:
    """Policy said no; the reasons and their remedies travel as ``errors``."""
    errors = [field_problem("", reason.message, reason.remedy, reason.code) for reason in decision.reasons]
    detail = " ".join(reason.message for reason in decision.reasons) or "No rule allows it."
    return ApiError(Slug.POLICY_DENIED, detail, errors=errors, decision_id=decision.id)


def policy_unavailable(decision_id: str | None = None, retry_after: int = 1) -> ApiError:
    """The policy engine cannot answer; nothing was decided, so nothing was done."""
    return ApiError(
        Slug.POLICY_UNAVAILABLE,
        "The policy engine does not answer, and without an answer nothing is done. Try again; see /readyz.",
        decision_id=decision_id,
        retryable=True,
        retry_after=retry_after,
    )


def conflict(detail: str, retryable: bool = False) -> ApiError:
    """It clashes with what already is."""
    return ApiError(Slug.CONFLICT, detail, retryable=retryable)


def unauthorized(detail: str = "Send an API key: `Authorization: Bearer sk_…` or `X-API-Key: sk_…`.") -> ApiError:
    """No key, or one that is not valid (any more). Deliberately does not say which."""
    return ApiError(Slug.UNAUTHORIZED, detail, headers={"WWW-Authenticate": "Bearer"})


def forbidden(scope: str, detail: str = "") -> ApiError:
    """The key is valid but lacks ``scope``."""
    said = detail or f"The key does not have the scope {scope!r}; ask an admin for a key that has it."
    return ApiError(Slug.FORBIDDEN, said)


def too_large(limit_bytes: int) -> ApiError:
    """The body has more than ``limit_bytes`` bytes."""
    return ApiError(
        Slug.TOO_LARGE,
        f"The body has more than {limit_bytes:,} bytes. Upload large data as an artifact and refer to it.",
    )


def not_yet(feature: str) -> ApiError:
    """Documented, but this version does not do it."""
    return ApiError(Slug.NOT_YET, f"{feature} is not available in this version.")


def not_stored() -> ApiError:
    """The journal could not make it durable; nothing of it happened."""
    return ApiError(
        Slug.NOT_STORED,
        "The change could not be made durable, so it did not happen. See the server's log and its disk.",
        retryable=True,
        retry_after=1,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
