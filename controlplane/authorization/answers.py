"""Makes an engine's raw answer a decision. Every input has an output: what is not exactly a decision denies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from controlplane.authorization.masking import masked
from controlplane.authorization.values import Decision, Failure, Obligation, Question, Reason, digest_of
from controlplane.ids import new_id


class _RawReason(msgspec.Struct, forbid_unknown_fields=True):
    code: str
    message: str
    remedy: str = ""


class _RawDecision(msgspec.Struct, forbid_unknown_fields=True):
    """The shape of a ``decision`` rule. ``allow`` has no default: an answer without it is malformed."""

    allow: bool
    reasons: list[_RawReason] = []
    obligations: list[dict[str, Any]] = []


_DECODER = msgspec.json.Decoder(_RawDecision)
_UNDEFINED = b'"<undefined>"'


def read_answer(
    question: Question, encoded: bytes, answer: bytes, *, rules: Mapping[str, str], revision: str, engine: str
) -> Decision:
    """The decision that ``answer`` (JSON) is; ``rules`` maps a reason code to its ``file:line``."""
    try:
        raw = _DECODER.decode(answer)
        obligations = tuple(_obligation(one) for one in raw.obligations) if raw.obligations else ()
    except (msgspec.DecodeError, ValueError) as problem:
        said = "undefined" if answer.strip() == _UNDEFINED else f"not a decision: {problem}"
        return refusal(
            question,
            failure="malformed_answer",
            message=f"{question.entry.value}.decision is {said}.",
            remedy="Give `decision` a default, and exactly allow, reasons, obligations; try `stockade policy test`.",
            revision=revision,
            engine=engine,
            encoded=encoded,
        )
    reasons = tuple(
        Reason(code=one.code, message=one.message, rule=rules.get(one.code, ""), remedy=one.remedy)
        for one in raw.reasons
    )
    if not raw.allow and not reasons:
        reasons = (
            Reason(
                code="default_deny",
                message=f"No rule of {question.entry.value} allows this.",
                remedy="Add a rule that allows it, or ask whoever keeps the policy.",
            ),
        )
    return Decision(
        id=new_id("dec"),
        entry=question.entry,
        allow=raw.allow,
        reasons=reasons,
        obligations=obligations if raw.allow else (),
        revision=revision,
        engine=engine,
        input_digest=digest_of(encoded),
        input=masked(question.input),
    )


def refusal(
    question: Question,
    *,
    failure: Failure,
    message: str,
    remedy: str,
    revision: str,
    engine: str,
    code: str = "",
    encoded: bytes | None = None,
) -> Decision:
    """A denial that no rule made. ``code`` defaults to the failure."""
    return Decision(
        id=new_id("dec"),
        entry=question.entry,
        allow=False,
        reasons=(Reason(code=code or failure, message=message, remedy=remedy),),
        obligations=(),
        revision=revision,
        engine=engine,
        input_digest=_safe_digest(question) if encoded is None else digest_of(encoded),
        input=_safe_input(question),
        failure=failure,
    )


def _obligation(raw: dict[str, Any]) -> Obligation:
    kind = raw.pop("kind", None)
    if not isinstance(kind, str) or not kind:
        raise ValueError("an obligation has no kind")
    return Obligation(kind=kind, args=raw)


def _safe_digest(question: Question) -> str:
    # An input that is refused may be one that cannot be encoded at all.
    try:
        return question.digest()
    except (TypeError, ValueError, RecursionError):
        return ""


def _safe_input(question: Question) -> dict[str, Any]:
    try:
        copied = masked(question.input)
        msgspec.json.encode(copied)
    except (TypeError, ValueError, AttributeError, RecursionError):
        return {}
    return copied
