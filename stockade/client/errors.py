"""Why a call gave no answer: a refusal (``StockadeError``), or no Stockade there (``ServerUnreachable``)."""

from __future__ import annotations

from typing import Any

from stockade.client.models import Problem

MOST_SHOWN = 3
UNTYPED = "about:blank"


class StockadeError(Exception):
    """The server's problem, RFC 9457. ``retryable`` means: the same call may succeed later, unchanged.

    ``str(error)`` is enough to mend the document: it has pointer, message and hint of the first faults.
    ``instance`` is the path that was asked, ``url`` the server. ``type`` is ``about:blank`` where what answered does
    not speak Stockade's problems, such as a proxy.
    """

    def __init__(self, status: int, body: dict[str, Any], url: str = "") -> None:
        self.status = status
        self.url = url
        self.type = str(body.get("type", UNTYPED))
        self.title = str(body.get("title", f"HTTP {status}"))
        self.detail = str(body.get("detail") or self.title)
        self.instance = str(body.get("instance") or "")
        self.errors = tuple(Problem.model_validate(item) for item in body.get("errors") or () if isinstance(item, dict))
        self.decision_id: str | None = body.get("decision_id")
        self.retryable = bool(body.get("retryable", False))
        super().__init__(self._text())

    @property
    def slug(self) -> str:
        """The last part of the problem type: ``policy-denied``, ``not-found`` …"""
        return self.type.rstrip("/").rpartition("/")[2].replace("_", "-")

    def _text(self) -> str:
        first = f"{self.title}: {self.detail}" if self.detail != self.title else self.title
        lines = [first, *(f"- {_one(problem)}" for problem in self.errors[:MOST_SHOWN])]
        if len(self.errors) > MOST_SHOWN:
            lines.append(f"- and {len(self.errors) - MOST_SHOWN} more in .errors")
        return "\n".join(lines)


def _one(problem: Problem) -> str:
    place = f"{problem.pointer or '/'}"
    if problem.line is not None:
        place += f" (line {problem.line}, column {problem.column or 1})"
    hint = f" — {problem.hint}" if problem.hint else ""
    return f"{place}: {problem.message}{hint}"


class ServerUnreachable(Exception):
    """No answer from ``url`` after every try."""

    def __init__(self, url: str, cause: str) -> None:
        self.url = url
        self.cause = cause
        super().__init__(f"no answer from {url}: {cause}")


class NotStockade(ServerUnreachable):
    """Something answers at ``url``, but it is no Stockade."""

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(url, cause)
        self.args = (f"{url} is not a Stockade: {cause}",)
