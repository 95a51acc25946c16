"""Remembers which questions have cost a worker its life, so that nobody waits behind them a second time."""

from __future__ import annotations

from collections import OrderedDict

from controlplane.authorization.values import EntryPoint, Question, canonical, digest_of

MOST = 1024
_FORGET_SECONDS = 600.0
# A step that asks again does so at another moment, and perhaps in another run: the same question all the same.
_PASSING = frozenset({"now_ns", "run"})


class Quarantine:
    """Questions by what they ask, for ten minutes each; the oldest give way."""

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[EntryPoint, str], float] = OrderedDict()

    def add(self, question: Question, now: float) -> None:
        """It has killed a worker."""
        key = _key(question)
        self._until[key] = now + _FORGET_SECONDS
        self._until.move_to_end(key)
        if len(self._until) > MOST:
            self._until.popitem(last=False)

    def release(self, question: Question) -> None:
        """It was answered after all."""
        self._until.pop(_key(question), None)

    def holds(self, question: Question, now: float) -> bool:
        """Must it be run alone?"""
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        return bool(self._until) and _key(question) in self._until


def _key(question: Question) -> tuple[EntryPoint, str]:
    lasting = {key: value for key, value in question.input.items() if key not in _PASSING}
    return question.entry, digest_of(canonical(lasting))
