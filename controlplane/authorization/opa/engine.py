"""The policy engine that is an OPA server. Total: whatever that server does, each question has one answer in time.

    refused, reset, 401, 403, 5xx, silence for 200 ms        PolicyUnavailable: the step parks
    {}, not JSON, wrong type, too long, other 4xx            a denial, logged as an error
    another revision than ours                               a denial, logged as an error
    a rule that contradicts itself (OPA answers 500)         a denial that names the place

Before OPA has answered with our revision for the first time, and again after it could not be reached, it may simply
not have fetched the bundle yet: until then no answer and another revision are ``PolicyUnavailable`` too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import msgspec
import structlog

from controlplane.authorization.answers import AnswerReader, refusal
from controlplane.authorization.batch import Answer
from controlplane.authorization.bundle import Bundle
from controlplane.authorization.opa.address import OpaAddress
from controlplane.authorization.opa.archive import NAME
from controlplane.authorization.opa.transport import OpaTransport, OpaUnreachable, OpaWrong, RuleFailed
from controlplane.authorization.quarantine import Quarantine
from controlplane.authorization.values import PolicyUnavailable, Question

log = structlog.get_logger(__name__)
ENGINE = "opa"
# So long without another answer, and a batch of many steps returns without what runs for long in it.
_PATIENCE_SECONDS = 0.16
# The same where all that is missing ran for long before.
_KNOWN_PATIENCE_SECONDS = 0.04
_LOOK_SECONDS = 0.02
# One request for these many, a few at a time: more in flight are not sooner done, and none would be done in time.
FRAME_QUESTIONS = 16
_FRAMES_AT_ONCE = 4
# So long until they are asked one by one, because one of them may run away.
_FRAME_SECONDS = 0.08
_PROBE_SECONDS = 0.1
_STEADY_PROBE_SECONDS = 1.0
_TOO_LATE = "OPA did not decide: the deadline passed."
_UNDEFINED = '"<undefined>"'


class _Batch:
    """The questions of one call. ``alone_at`` is when those that were asked alone were."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self.answers: list[Answer | None] = [None] * len(questions)
        self.alone_at: dict[int, float] = {}

    @property
    def is_of_many_steps(self) -> bool:
        """Not all that is asked is asked for one step of one run."""
        return len({(one.input.get("run"), one.input.get("step")) for one in self.questions}) > 1


class OpaEngine:
    """Asks the OPA at ``address`` about ``bundle``, which that OPA fetches itself. One event loop uses it."""

    def __init__(self, bundle: Bundle, address: OpaAddress, token: str, deadline_seconds: float = 0.2) -> None:
        if deadline_seconds <= 0:
            raise ValueError("deadline_seconds must be > 0")
        self._bundle = bundle
        self._reader = AnswerReader(rules=bundle.rules, revision=bundle.revision, engine=ENGINE)
        self._transport = OpaTransport(address, token)
        self._deadline_seconds = deadline_seconds
        self._frames_at_once = asyncio.Semaphore(_FRAMES_AT_ONCE)
        self._quarantine = Quarantine()
        self._answered_at = 0.0
        self._is_open = False
        self._is_in_step = False
        self._is_ready = False
        self._trouble = "it was not asked yet"
        self._monitor: asyncio.Task[NoReturn] | None = None

    @property
    def revision(self) -> str:
        """The revision that every answer must be of."""
        return self._bundle.revision

    @property
    def name(self) -> str:
        """Always ``opa``."""
        return ENGINE

    @property
    def is_ready(self) -> bool:
        """OPA answered lately, with our revision."""
        return self._is_ready

    async def start(self) -> None:
        """Connect. Raises: PolicyUnavailable if OPA does not answer with our revision at once; it goes on trying."""
        if not self._is_open:
            await self._transport.open()
            self._is_open = True
            self._monitor = asyncio.get_running_loop().create_task(self._watch())
        await self._probe()
        if not self._is_ready:
            raise PolicyUnavailable(f"OPA cannot decide now: {self._trouble}.")

    async def decide(self, questions: Sequence[Question]) -> list[Answer]:
        """See the port. Bounded by the deadline."""
        if not questions:
            return []
        if not self._is_open:
            return [PolicyUnavailable("The policy engine is not running.") for _ in questions]
        loop = asyncio.get_running_loop()
        begun = loop.time()
        batch = _Batch(questions)
        async with asyncio.TaskGroup() as group:
            positions = range(len(questions))
            frames = [positions[at : at + FRAME_QUESTIONS] for at in positions[::FRAME_QUESTIONS]]
            late = {group.create_task(self._frame(batch, frame)) for frame in frames}
            left, since = len(questions), begun
            while late and (now := loop.time()) < begun + self._deadline_seconds:
                _, late = await asyncio.wait(late, timeout=min(_LOOK_SECONDS, begun + self._deadline_seconds - now))
                if (missing := batch.answers.count(None)) < left:
                    left, since = missing, loop.time()
                # Other steps wait for this batch: what keeps them asks again, alone.
                elif left < len(questions) and self._is_stuck(batch, loop.time() - since):
                    break
            for task in late:
                task.cancel()  # OPA ends an evaluation whose asker is gone
        for index, answer in enumerate(batch.answers):
            # Only what was alone and still saw others answered is to blame; the rest was slow with everybody.
            if answer is None and batch.alone_at.get(index, loop.time()) < self._answered_at:
                self._quarantine.add(questions[index], begun)
        return [PolicyUnavailable(_TOO_LATE) if one is None else one for one in batch.answers]

    def _is_stuck(self, batch: _Batch, still_seconds: float) -> bool:
        """Whether nothing but questions that run for long is missing, which are not all there is to wait for."""
        now = asyncio.get_running_loop().time()
        missing = (one for one, answer in zip(batch.questions, batch.answers, strict=True) if answer is None)
        is_known = still_seconds >= _KNOWN_PATIENCE_SECONDS and all(self._quarantine.holds(one, now) for one in missing)
        return (is_known or still_seconds >= _PATIENCE_SECONDS) and batch.is_of_many_steps

    async def close(self) -> None:
        """Close the connections; afterwards every question is unavailable."""
        self._is_open = self._is_in_step = self._is_ready = False
        if self._monitor is not None:
            self._monitor.cancel()
            with suppress(asyncio.CancelledError):
                await self._monitor
            self._monitor = None
        await self._transport.close()

    async def _frame(self, batch: _Batch, frame: range) -> None:
        """Answer these: together, and each for itself if one of them keeps or fails the others."""
        together: list[int] = []
        alone: list[int] = []
        now = asyncio.get_running_loop().time()
        for index in frame:
            question = batch.questions[index]
            try:
                question.encoded()
            except (TypeError, ValueError, RecursionError):
                batch.answers[index] = self._reader.not_json(question)
            else:
                (alone if self._quarantine.holds(question, now) else together).append(index)
        async with asyncio.TaskGroup() as group:
            for index in alone:
                group.create_task(self._alone(batch, index))
            if len(together) == 1 or (together and not await self._together(batch, together)):
                for index in together:
                    group.create_task(self._alone(batch, index))

    async def _together(self, batch: _Batch, asked: list[int]) -> bool:
        """Whether one request answered them all."""
        try:
            async with self._frames_at_once, asyncio.timeout(_FRAME_SECONDS):
                said = await self._transport.ask_many([batch.questions[index] for index in asked])
        except (TimeoutError, OpaUnreachable, OpaWrong, RuleFailed):
            return False
        decided = said.pop("result", None)
        if _revision_in(said) != self.revision or not isinstance(decided, dict):
            return False
        for position, index in enumerate(asked):
            key = str(position)
            one = {**said, "result": decided[key]} if key in decided else said
            batch.answers[index] = self._read(batch.questions[index], one)
        return True

    async def _alone(self, batch: _Batch, index: int) -> None:
        question = batch.questions[index]
        batch.alone_at[index] = asyncio.get_running_loop().time()
        try:
            answer = self._read(question, await self._transport.ask(question))
            self._quarantine.release(question)
        except OpaUnreachable as problem:
            self._lose_step(str(problem))
            answer = PolicyUnavailable(f"OPA did not decide: {problem}.")
        except RuleFailed as problem:
            answer = self._reader.failed(question, str(problem))
        except OpaWrong as problem:
            answer = self._wrong(question, str(problem))
        batch.answers[index] = answer

    def _read(self, question: Question, said: dict[str, Any]) -> Answer:
        found = _revision_in(said)
        if found != self.revision:
            why = f"it decides by revision {found!r} and not {self.revision!r}" if found else "it has no policy of ours"
            if not self._is_in_step:
                return PolicyUnavailable(f"OPA did not decide: {why} yet.")
            return self._wrong(question, why, code="wrong_revision" if found else "no_policy")
        self._is_in_step = self._is_ready = True
        self._answered_at = asyncio.get_running_loop().time()
        try:
            result = msgspec.json.encode(said["result"]).decode() if "result" in said else _UNDEFINED
        except (ValueError, OverflowError, RecursionError):
            return self._wrong(question, "its answer cannot be written as JSON")
        return self._reader.read(question, result)

    def _wrong(self, question: Question, why: str, code: str = "") -> Answer:
        log.error("wrong answer of the policy engine", engine=ENGINE, why=why, entry=question.entry.value)
        return refusal(
            question,
            failure="malformed_answer",
            code=code,
            message=f"OPA answered, and not with a decision: {why}.",
            remedy="Look at the OPA server: its address, its bundle and its log; `stockade doctor` helps.",
            revision=self.revision,
            engine=ENGINE,
        )

    async def _watch(self) -> NoReturn:
        while True:
            await asyncio.sleep(_STEADY_PROBE_SECONDS if self._is_ready else _PROBE_SECONDS)
            await self._probe()

    async def _probe(self) -> None:
        """Ask nothing, to know whether it would answer."""
        try:
            async with asyncio.timeout(self._deadline_seconds):
                found = _revision_in(await self._transport.ask_revision())
        except TimeoutError:
            self._lose_step(f"no answer within {self._deadline_seconds * 1000:.0f} ms")
        except (OpaUnreachable, OpaWrong, RuleFailed) as problem:
            self._lose_step(str(problem))
        else:
            if found == self.revision:
                if not self._is_ready:
                    log.info("policy engine ready", engine=ENGINE, revision=found)
                self._is_in_step = self._is_ready = True
                return
            self._trouble = f"it has revision {found!r} and not {self.revision!r}"
            if self._is_ready:
                log.error("wrong answer of the policy engine", engine=ENGINE, why=self._trouble)
            self._is_ready = False

    def _lose_step(self, why: str) -> None:
        if self._is_ready:
            log.warning("policy engine unavailable", engine=ENGINE, why=why)
        self._is_in_step = self._is_ready = False
        self._trouble = why


def _revision_in(said: dict[str, Any]) -> str:
    """The revision of our bundle in an answer's provenance; "" if it says none."""
    found: Any = said
    for key in ("provenance", "bundles", NAME, "revision"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else ""
