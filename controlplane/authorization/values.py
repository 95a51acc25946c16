"""What is asked of policy and what comes back: values, without a clock or an engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import msgspec

# Sorted keys: one input has one encoding, so its digest means the same everywhere.
_CANONICAL = msgspec.json.Encoder(order="sorted")

Failure = Literal["", "policy_unavailable", "malformed_answer", "unknown_obligation", "invalid_input"]


class EntryPoint(StrEnum):
    """The questions policy can be asked; the value is the Rego package whose ``decision`` rule answers."""

    WORKFLOW = "runtime.workflow"
    DATA = "runtime.data"
    TOOL = "runtime.tool"
    SECRET = "runtime.secret"  # noqa: S105
    EGRESS = "runtime.egress"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question. ``input`` is JSON-able and shaped by ``policies/schemas``; nobody changes it afterwards."""

    entry: EntryPoint
    input: Mapping[str, Any]

    def encoded(self) -> bytes:
        """The input as canonical JSON (sorted keys, no spaces). Raises: TypeError if it is not JSON-able."""
        return _CANONICAL.encode(self.input)

    def digest(self) -> str:
        """``sha256:`` and the hex digest of the canonical input. Raises: TypeError if it is not JSON-able."""
        return digest_of(self.encoded())


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why: ``code`` for machines, ``message`` for people, ``rule`` as ``file:line`` ("" if no rule said so),
    ``remedy`` says what to do about it."""

    code: str
    message: str
    rule: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Obligation:
    """What must be done if the allowed thing is done."""

    kind: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The answer to one question. Obligations ride only on an allow.

    ``failure`` is "" when rules decided; anything else is a denial that rules did not make.
    ``input`` is masked (no secret values, long text cut); ``input_digest`` is over the full input.
    """

    id: str
    entry: EntryPoint
    allow: bool
    reasons: tuple[Reason, ...]
    obligations: tuple[Obligation, ...]
    revision: str
    engine: str
    input_digest: str
    input: Mapping[str, Any]
    failure: Failure = ""

    def to_json(self) -> dict[str, Any]:
        """The decision as plain JSON types, as the decision log and ``/v1/decisions`` show it."""
        return {
            "id": self.id,
            "entry": self.entry.value,
            "allow": self.allow,
            "reasons": [
                {"code": one.code, "message": one.message, "rule": one.rule, "remedy": one.remedy}
                for one in self.reasons
            ],
            "obligations": [{"kind": one.kind, "args": dict(one.args)} for one in self.obligations],
            "revision": self.revision,
            "engine": self.engine,
            "input_digest": self.input_digest,
            "input": dict(self.input),
            "failure": self.failure,
        }


class PolicyUnavailable(Exception):
    """The platform could not get an answer (engine down, slow or crashed). Nothing may execute; try again later.

    ``decision`` is the denial to record; the enforcement point fills it in. Its message never quotes the input.
    """

    def __init__(self, message: str, decision: Decision | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.decision = decision


def digest_of(encoded: bytes) -> str:
    """``sha256:`` and the hex digest of bytes."""
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"
