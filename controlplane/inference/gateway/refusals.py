"""What the gateway refuses, in the form that OpenAI's clients understand, with our reason, fix and decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from controlplane.authorization.values import Decision
from controlplane.inference.values import ModelFailed

Code = Literal[
    "invalid_request",
    "invalid_api_key",
    "scope_missing",
    "policy_denied",
    "model_not_found",
    "too_large",
    "busy",
    "model_failed",
    "model_unavailable",
    "policy_unavailable",
    "not_stored",
    "timeout",
    "internal",
]
_STATUS: dict[str, int] = {
    "invalid_request": 400,
    "invalid_api_key": 401,
    "scope_missing": 403,
    "policy_denied": 403,
    "model_not_found": 404,
    "too_large": 413,
    "busy": 429,
    "model_failed": 502,
    "model_unavailable": 503,
    "policy_unavailable": 503,
    "not_stored": 503,
    "timeout": 504,
    "internal": 500,
}
_TYPE = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_STEP_TYPE = {
    "invalid_request": "schema",
    "too_large": "schema",
    "policy_denied": "policy_denied",
    "model_not_found": "not_found",
    "busy": "rate_limited",
    "timeout": "timeout",
}


class GatewayRefused(Exception):
    """One refusal. ``param`` names the field, ``fix`` says what to do; ``retry_after`` is in seconds."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        fix: str = "",
        param: str | None = None,
        decision: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code: Code = code
        self.message = message
        self.fix = fix
        self.param = param
        self.decision = decision
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """The HTTP status."""
        return _STATUS[self.code]

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may be answered later."""
        return self.status in (429, 502, 503, 504)

    def to_json(self) -> dict[str, Any]:
        """OpenAI's error object, and what we add to it."""
        error: dict[str, Any] = {
            "message": f"{self.message} {self.fix}".strip(),
            "type": _TYPE.get(self.status, "server_error"),
            "param": self.param,
            "code": self.code,
            "retryable": self.is_retryable,
        }
        if self.fix:
            error["fix"] = self.fix
        if self.decision is not None:
            error["decision_id"] = self.decision
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """``Retry-After`` and whether to heed it."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status in (401, 429, 502, 503, 504):
            headers["x-should-retry"] = "true" if self.is_retryable else "false"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers

    def as_failure(self) -> ModelFailed:
        """The same for a step."""
        said = f"{self.message} {self.fix}".strip()
        return ModelFailed(_STEP_TYPE.get(self.code, "model"), said, retryable=self.is_retryable)


def wrong_field(param: str, message: str, fix: str) -> GatewayRefused:
    """The request's ``param`` cannot be passed on."""
    return GatewayRefused("invalid_request", f"`{param}`: {message}.", fix=fix, param=param)


def unknown_model(name: str, there_are: Sequence[str]) -> GatewayRefused:
    """No deployment has this name or alias."""
    listed = ", ".join(there_are[:20]) + (", …" if len(there_are) > 20 else "")
    shown = name if len(name) <= 200 else name[:200] + "…"
    return GatewayRefused(
        "model_not_found",
        f"There is no model {shown!r} here.",
        fix=f"There are: {listed}." if listed else "None is deployed: stockade model apply FILE.",
        param="model",
    )


def denied(decision: Decision) -> GatewayRefused:
    """Policy said no."""
    message = " ".join(one.message for one in decision.reasons) or "No rule allows it."
    fix = " ".join(one.remedy for one in decision.reasons if one.remedy)
    return GatewayRefused("policy_denied", message, fix=fix, decision=decision.id, param="model")


def policy_unavailable(decision: str | None = None) -> GatewayRefused:
    """Policy did not answer, so nothing was done."""
    message = "The policy engine does not answer, and without an answer nothing is done."
    return GatewayRefused("policy_unavailable", message, fix="Try again.", decision=decision, retry_after=1)
