"""What is asked of policy and what comes back: values, without a clock or an engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import msgspec

# Sorted keys: one input has one encoding, so its digest means the same everywhere.
_CANONICAL = msgspec.json.Encoder(order="sorted")
_PLAIN = msgspec.json.Encoder()

Failure = Literal["", "policy_unavailable", "malformed_answer", "unknown_obligation", "invalid_input"]


class EntryPoint(StrEnum):
    """The questions policy can be asked; the value is the Rego package whose ``decision`` rule answers."""

    WORKFLOW = "runtime.workflow"
    DATA = "runtime.data"
    TOOL = "runtime.tool"
    SECRET = "runtime.secret"  # noqa: S105
    EGRESS = "runtime.egress"
    MODEL = "runtime.model"


# Questions and decisions are structs: there is one of each for every step, and a dataclass costs ten times as much.
class Question(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One question. ``input`` is JSON-able and shaped by ``policies/schemas``; nobody changes it afterwards."""

    entry: EntryPoint
    input: Mapping[str, Any]
    # What ``encoded`` found the first time.
    known: bytes = b""

    def encoded(self) -> bytes:
        """The input as canonical JSON (sorted keys, no spaces). Raises: TypeError, ValueError, RecursionError if it
        is not JSON-able."""
        if not self.known:
            msgspec.structs.force_setattr(self, "known", canonical(self.input))
        return self.known

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


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one question. Obligations ride only on an allow.

    ``failure`` is "" when rules decided; anything else is a denial that rules did not make.
    ``input`` is masked (no secret values, long text cut) and ``input_json`` the same as JSON text; ``input_digest``
    is over the full input.
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
    input_json: str = "{}"
    failure: Failure = ""

    def log_row(self) -> dict[str, str | bool]:
        """The decision's own columns of the decision log; lists and the input as JSON text."""
        return {
            "id": self.id,
            "entry": self.entry.value,
            "allow": self.allow,
            "reasons": _PLAIN.encode(self.reasons).decode() if self.reasons else "[]",
            "obligations": canonical(self.to_json()["obligations"]).decode() if self.obligations else "[]",
            "revision": self.revision,
            "engine": self.engine,
            "input_digest": self.input_digest,
            "input": self.input_json,
            "failure": self.failure,
        }

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


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces. Raises: TypeError, ValueError, RecursionError if it is not JSON-able."""
    try:
        return _CANONICAL.encode(value)
    except OverflowError:  # an integer past 64 bits, which the quick encoder does not write
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
        ).encode()


def digest_of(encoded: bytes) -> str:
    """``sha256:`` and the hex digest of bytes."""
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
