"""Why a call gave no answer: the server refused (``StockadeError``) or was not there (``ServerUnreachable``)."""

from __future__ import annotations

from typing import Any

from stockade.client.models import Problem


class StockadeError(Exception):
    """The server's problem, RFC 9457. ``retryable`` means: the same call may succeed later, unchanged."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        self.status = status
        self.type = str(body.get("type", "about:blank"))
        self.title = str(body.get("title", f"HTTP {status}"))
        self.detail = str(body.get("detail") or self.title)
        self.errors = tuple(Problem.model_validate(item) for item in body.get("errors") or () if isinstance(item, dict))
        self.decision_id: str | None = body.get("decision_id")
        self.retryable = bool(body.get("retryable", False))
        super().__init__(f"{self.title}: {self.detail}" if self.detail != self.title else self.title)

    @property
    def slug(self) -> str:
        """The last part of the problem type: ``policy-denied``, ``not-found`` …"""
        return self.type.rstrip("/").rpartition("/")[2].replace("_", "-")


class ServerUnreachable(Exception):
    """No answer from ``url`` after every try."""

    def __init__(self, url: str, cause: str) -> None:
        self.url = url
        self.cause = cause
        super().__init__(f"no answer from {url}: {cause}")
