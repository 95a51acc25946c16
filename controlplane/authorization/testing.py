"""StaticEngine: a policy engine without Rego, for tests. It passes the suite the real engine passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from controlplane.authorization.answers import AnswerReader
from controlplane.authorization.values import Decision, EntryPoint, PolicyUnavailable, Question

REVISION = "static"
_ALLOW = {"allow": True, "reasons": [], "obligations": []}
_READER = AnswerReader(rules={}, revision=REVISION, engine="static")


class Never:
    """An answer that does not come: a rule that runs away."""


def allow_all(question: Question) -> Any:
    """Allows everything."""
    return _ALLOW


class StaticEngine:
    """Answers with what ``answer`` returns: JSON-able as a rule would give it, a ``PolicyUnavailable``, or ``Never``.

    ``is_down`` makes every question unavailable until it is reset. ``asked`` records the questions.
    """

    def __init__(self, answer: Callable[[Question], Any] = allow_all, deadline_seconds: float = 0.2) -> None:
        self._answer = answer
        self._deadline_seconds = deadline_seconds
        self._is_open = False
        self.is_down = False
        self.asked: list[Question] = []

    @property
    def revision(self) -> str:
        """Always the same."""
        return REVISION

    @property
    def name(self) -> str:
        """Always ``static``."""
        return "static"

    @property
    def is_ready(self) -> bool:
        """It was started and is not down."""
        return self._is_open and not self.is_down

    async def start(self) -> None:
        """Get ready. Raises: PolicyUnavailable while it is down."""
        self._is_open = True
        if self.is_down:
            raise PolicyUnavailable("The static engine is down.")

    async def decide(self, questions: Sequence[Question]) -> list[Decision | PolicyUnavailable]:
        """See the port."""
        self.asked.extend(questions)
        answers = [self._one(question) for question in questions]
        if any(isinstance(one, PolicyUnavailable) and one.message.startswith("Late") for one in answers):
            await asyncio.sleep(self._deadline_seconds)
        return answers

    async def close(self) -> None:
        """Every later question is unavailable."""
        self._is_open = False

    def _one(self, question: Question) -> Decision | PolicyUnavailable:
        if self.is_down or not self._is_open:
            return PolicyUnavailable("The static engine is down.")
        answer = self._answer(question)
        if isinstance(answer, PolicyUnavailable):
            return answer
        if isinstance(answer, Never):
            return PolicyUnavailable(f"Late: no answer within {self._deadline_seconds * 1000:.0f} ms.")
        return _READER.read(question, msgspec.json.encode(answer).decode())


_DESTINATION = {"scheme": "https", "host": "api.example.com", "port": 443, "method": "GET", "path": "/"}
_TOOL = {"name": "builtin.noop", "server": "builtin", "kind": "builtin", "digest": "d", "effect": "none"}
_DEFINITION = {"verbs": [], "tools": [], "secrets": [], "tiers": [], "data": [], "steps": 1, "resources": {}}
_ASKER: dict[str, Any] = {
    "tenant": "default",
    "subject": {"id": "someone", "kind": "person", "scopes": []},
    "now_ns": 1,
    "run": "run_1",
    "workflow": {"name": "w", "version": "1", "digest": "d"},
    "step": "s",
}
_REST: dict[EntryPoint, dict[str, Any]] = {
    EntryPoint.WORKFLOW: {"definition": _DEFINITION},
    EntryPoint.DATA: {"uri": "data://logs/a.log", "data_name": "logs", "purpose": "mount"},
    EntryPoint.TOOL: {"tool": _TOOL, "args": {}, "granted": [], "via": "step", "sandbox": None, "secrets": []},
    EntryPoint.SECRET: {"secret": "key", "tool": "a.b", "destination": _DESTINATION, "step_secrets": ["key"]},
    EntryPoint.EGRESS: {"destination": _DESTINATION, "tool": "a.b", "declared_hosts": ["api.example.com"]},
    EntryPoint.MODEL: {
        "models": [{"name": "small", "kind": "llamacpp", "destination": None}],
        "operation": "chat",
        "labels": {},
        "tools": [],
        "max_tokens": None,
        "via": "step",
    },
}


def question(entry: EntryPoint = EntryPoint.TOOL, **changes: Any) -> Question:
    """A valid question, with top-level fields of its input changed."""
    return Question(entry=entry, input={**_ASKER, **_REST[entry], **changes})
