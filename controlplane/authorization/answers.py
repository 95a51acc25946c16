"""Makes an engine's raw answer a decision. Every input has an output: what is not exactly a decision denies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from controlplane.authorization.masking import masked
from controlplane.authorization.values import (
    Decision,
    EntryPoint,
    Failure,
    Obligation,
    Question,
    Reason,
    canonical,
    digest_of,
)
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
_UNDEFINED = '"<undefined>"'
# Most answers are one of a few texts (the allow, the same denial again), so their parts are made once.
_REMEMBERED = 512
_LONGEST_REMEMBERED = 2048

_Parts = tuple[bool, tuple[Reason, ...], tuple[Obligation, ...]]


class AnswerReader:
    """Reads the answers of one engine with one bundle; ``rules`` maps a reason code to its ``file:line``."""

    def __init__(self, *, rules: Mapping[str, str], revision: str, engine: str) -> None:
        self._rules = rules
        self._revision = revision
        self._engine = engine
        self._remembered: dict[tuple[EntryPoint, str], _Parts] = {}

    def read(self, question: Question, answer: str) -> Decision:
        """The decision that ``answer`` (JSON) is. Raises: TypeError, ValueError if the question is not JSON-able."""
        key = (question.entry, answer)
        parts = self._remembered.get(key)
        if parts is None:
            try:
                parts = self._parts(question.entry, answer)
            except (msgspec.DecodeError, ValueError) as problem:
                return self._malformed(question, answer, problem)
            # Obligations hold what their rule wrote, which is rarely the same twice.
            if len(answer) <= _LONGEST_REMEMBERED and not parts[2]:
                if len(self._remembered) >= _REMEMBERED:
                    self._remembered.clear()
                self._remembered[key] = parts
        allow, reasons, obligations = parts
        encoded = question.encoded()
        kept = masked(question.input)
        return Decision(
            id=new_id("dec"),
            entry=question.entry,
            allow=allow,
            reasons=reasons,
            obligations=obligations,
            revision=self._revision,
            engine=self._engine,
            input_digest=digest_of(encoded),
            input=kept,
            input_json=(encoded if kept is question.input else canonical(kept)).decode(),
        )

    def failed(self, question: Question, problem: str) -> Decision:
        """The denial where a rule gave no value at all."""
        return refusal(
            question,
            failure="malformed_answer",
            message=f"{question.entry.value}.decision failed: {problem}",
            remedy="Mend the rule at the place named; `stockade policy test` shows it.",
            revision=self._revision,
            engine=self._engine,
        )

    def not_json(self, question: Question) -> Decision:
        """The denial where a question cannot be written."""
        return refusal(
            question,
            failure="invalid_input",
            message="The question is not JSON.",
            remedy="Report this: the control plane asked it.",
            revision=self._revision,
            engine=self._engine,
        )

    def _parts(self, entry: EntryPoint, answer: str) -> _Parts:
        raw = _DECODER.decode(answer)
        obligations = tuple(_obligation(one) for one in raw.obligations)
        reasons = tuple(
            Reason(code=one.code, message=one.message, rule=self._rules.get(one.code, ""), remedy=one.remedy)
            for one in raw.reasons
        )
        if not raw.allow and not reasons:
            reasons = (
                Reason(
                    code="default_deny",
                    message=f"No rule of {entry.value} allows this.",
                    remedy="Add a rule that allows it, or ask whoever keeps the policy.",
                ),
            )
        return raw.allow, reasons, obligations if raw.allow else ()

    def _malformed(self, question: Question, answer: str, problem: Exception) -> Decision:
        said = "undefined" if answer.strip() == _UNDEFINED else f"not a decision: {problem}"
        return refusal(
            question,
            failure="malformed_answer",
            message=f"{question.entry.value}.decision is {said}.",
            remedy="Give `decision` a default, and exactly allow, reasons, obligations; try `stockade policy test`.",
            revision=self._revision,
            engine=self._engine,
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
) -> Decision:
    """A denial that no rule made. ``code`` defaults to the failure."""
    kept, text = _safe_input(question)
    return Decision(
        id=new_id("dec"),
        entry=question.entry,
        allow=False,
        reasons=(Reason(code=code or failure, message=message, remedy=remedy),),
        obligations=(),
        revision=revision,
        engine=engine,
        input_digest=_safe_digest(question),
        input=kept,
        input_json=text,
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


def _safe_input(question: Question) -> tuple[Mapping[str, Any], str]:
    try:
        kept = masked(question.input)
        return kept, canonical(kept).decode()
    except (TypeError, ValueError, AttributeError, RecursionError):
        return {}, "{}"
