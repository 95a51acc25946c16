"""The port between the enforcement point and whatever evaluates Rego.

A conforming engine (``tests/conformance/test_policy_engine.py``) answers every question of a batch, in order,
with a decision or with ``PolicyUnavailable`` as a value: one bad question never costs another its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controlplane.authorization.values import Decision, PolicyUnavailable, Question


class PolicyEngine(Protocol):
    """Evaluates one bundle."""

    @property
    def revision(self) -> str:
        """Which bundle decides; it is in every decision."""

    @property
    def name(self) -> str:
        """What evaluates, as ``/v1/status`` shows it."""

    @property
    def is_ready(self) -> bool:
        """Whether a question asked now would most likely be answered."""

    async def start(self) -> None:
        """Get ready. Raises: PolicyUnavailable if the engine cannot evaluate now; it goes on trying."""

    async def decide(self, questions: Sequence[Question]) -> list[Decision | PolicyUnavailable]:
        """One answer a question, in order. Never raises for a question or for a broken engine; bounded in time."""

    async def close(self) -> None:
        """Give back processes and connections, within 2 s; afterwards every question is unavailable."""
