"""The enforcement point: the only way to ask policy, and total.

    question ─▶ schema ─▶ engine ─▶ a decision? ─▶ every obligation implemented? ─▶ Decision
                  │no        │late, broken   │no               │no
                  ▼          ▼               ▼                 ▼
             invalid_input   PolicyUnavailable   malformed_answer   unknown_obligation      (all deny)

Nothing but an answer whose ``allow is True`` lets anything happen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from controlplane.authorization.answers import refusal
from controlplane.authorization.engine import PolicyEngine
from controlplane.authorization.schemas import problem_with
from controlplane.authorization.values import Decision, EntryPoint, Failure, PolicyUnavailable, Question, Reason

WITHIN_SECONDS = 0.23
# What a rule can read within its time; a longer argument belongs in an artifact.
LONGEST_INPUT_BYTES = 1 << 20
_ENFORCER = "enforcer"
# Obligations that policies may already be written with, so that their denial says "not yet", not "what is this".
_PLANNED = frozenset(
    {"allow_list", "attenuate", "bytes_max", "cap", "downgrade", "force_tier", "inject", "label_output"}
    | {"max_tokens", "pause", "pin_digest", "quarantine", "rate_limit", "redact", "require_approval"}
    | {"sandbox_tier", "scrub_response", "terminate_tls", "ttl"}
)


class Enforcer:
    """Asks ``engine``. ``implemented`` lists the obligations that the caller really carries out, by entry point."""

    def __init__(self, engine: PolicyEngine, implemented: Mapping[EntryPoint, frozenset[str]]) -> None:
        self._engine = engine
        self._implemented = implemented

    async def ask(self, question: Question) -> Decision:
        """The decision. Raises: PolicyUnavailable within 250 ms when there is none; park, and ask again later."""
        (answer,) = await self.ask_many([question])
        if isinstance(answer, PolicyUnavailable):
            raise answer
        return answer

    async def ask_many(self, questions: Sequence[Question]) -> list[Decision | PolicyUnavailable]:
        """One answer a question, in order, within 250 ms; a ``PolicyUnavailable`` carries its ``decision``.

        All are returned together; what runs away among them is given up as soon as the others are answered, unless
        all are one step's."""
        if not questions:
            return []
        invalid = {index: no for index, one in enumerate(questions) if (no := self._invalid(one)) is not None}
        asked = [one for index, one in enumerate(questions) if index not in invalid] if invalid else questions
        got = [self._checked(*one) for one in zip(asked, await self._from_engine(asked), strict=True)]
        if invalid:
            rest = iter(got)
            return [invalid[index] if index in invalid else next(rest) for index in range(len(questions))]
        return got

    def _invalid(self, question: Question) -> Decision | None:
        problem = problem_with(question.entry, question.input) or _unsendable(question)
        if not problem:
            return None
        return self._refusal(
            question,
            "invalid_input",
            f"The question to {question.entry.value} does not fit its schema: {problem}.",
            "Report this with the decision id: the control plane asked it.",
        )

    async def _from_engine(self, questions: Sequence[Question]) -> Sequence[Any]:
        if not questions:
            return []
        why = "it gave another number of answers than was asked"
        loop, limit = asyncio.get_running_loop(), asyncio.timeout(None)
        # A turn later, so that answers which are there when a busy loop comes to it still count.
        ending = loop.call_later(WITHIN_SECONDS, loop.call_soon, _expire, limit)
        try:
            async with limit:
                try:
                    answers = await self._engine.decide(questions)
                finally:
                    ending.cancel()
            if isinstance(answers, list) and len(answers) == len(questions):
                return answers
        except TimeoutError:
            why = f"no answer within {WITHIN_SECONDS * 1000:.0f} ms"
        except Exception as problem:
            # Whatever an engine raises, nothing executes; its words could quote the input, its type cannot.
            why = f"{type(problem).__name__}"
        return [PolicyUnavailable(f"The policy engine failed: {why}.") for _ in questions]

    def _checked(self, question: Question, answer: Any) -> Decision | PolicyUnavailable:
        if isinstance(answer, PolicyUnavailable):
            answer.decision = self._refusal(
                question,
                "policy_unavailable",
                answer.message,
                "Nothing was done. The step waits and asks again by itself; `stockade doctor` shows the engine.",
            )
            return answer
        if not isinstance(answer, Decision) or type(answer.allow) is not bool or answer.entry is not question.entry:
            return self._refusal(
                question,
                "malformed_answer",
                "The policy engine answered with something that is not a decision.",
                "Report this with the decision id: the engine's adapter is broken.",
            )
        if not answer.obligations:
            return answer
        known = self._implemented.get(question.entry, frozenset())
        missing = [one.kind for one in answer.obligations if one.kind not in known]
        return self._unfulfilled(answer, missing) if missing else answer

    def _unfulfilled(self, answer: Decision, missing: Sequence[str]) -> Decision:
        planned = [kind for kind in missing if kind in _PLANNED]
        code = "obligation_not_implemented" if len(planned) == len(missing) else "unknown_obligation"
        reason = Reason(
            code=code,
            message=f"{answer.entry.value} allows this only with {', '.join(missing)}, which is not "
            + ("implemented yet." if code == "obligation_not_implemented" else "known to this version."),
            rule=answer.reasons[0].rule if answer.reasons else "",
            remedy="Change the rule so that it denies or allows without this obligation.",
        )
        return msgspec.structs.replace(
            answer,
            allow=False,
            failure="unknown_obligation",
            reasons=(reason, *answer.reasons),
            obligations=(),
        )

    def _refusal(self, question: Question, failure: Failure, message: str, remedy: str) -> Decision:
        return refusal(
            question,
            failure=failure,
            message=message,
            remedy=remedy,
            revision=self._engine.revision,
            engine=_ENFORCER,
        )


def _expire(limit: asyncio.Timeout) -> None:
    with suppress(RuntimeError):  # it was over before its time
        limit.reschedule(0)


def _unsendable(question: Question) -> str:
    # The schema knows nothing of half a surrogate pair, nor of the sum of the sizes it allows.
    try:
        size = len(question.encoded())
    except (TypeError, ValueError, RecursionError) as problem:
        return f"/ is not JSON ({type(problem).__name__})"
    return "" if size <= LONGEST_INPUT_BYTES else f"/ has {size} bytes of {LONGEST_INPUT_BYTES}; use an artifact"
