"""The questions of one ``decide`` call on their way through workers, and their answers on the way back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from controlplane.authorization.values import Decision, PolicyUnavailable, Question

Answer = Decision | PolicyUnavailable


class Batch:
    """``done`` is set when every question has an answer. The first answer to a question counts."""

    __slots__ = ("answers", "asked_at", "done", "missing", "questions")

    def __init__(self, questions: Sequence[Question], done: asyncio.Future[None], now: float) -> None:
        self.asked_at = now
        self.questions = questions
        self.answers: list[Answer | None] = [None] * len(questions)
        self.missing = len(questions)
        self.done = done

    @property
    def is_of_many_steps(self) -> bool:
        """Not all that is asked is asked for one step of one run."""
        return len({(one.input.get("run"), one.input.get("step")) for one in self.questions}) > 1

    def settle(self, index: int, answer: Answer) -> None:
        """This is the answer, if there is none yet."""
        if self.answers[index] is None:
            self.answers[index] = answer
            self.missing -= 1
            if not self.missing and not self.done.done():
                self.done.set_result(None)


class Asked(msgspec.Struct, gc=False, eq=False):
    """One question on its way: where the answer goes, which rule, with what input."""

    batch: Batch
    index: int
    rule: int
    text: str

    @property
    def question(self) -> Question:
        """What is asked."""
        return self.batch.questions[self.index]

    @property
    def is_settled(self) -> bool:
        """Nobody waits for its answer any more."""
        return self.batch.answers[self.index] is not None

    def settle(self, answer: Answer) -> None:
        """This is the answer, if there is none yet."""
        self.batch.settle(self.index, answer)
