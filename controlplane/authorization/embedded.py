"""The policy engine for one machine: regorus in worker processes that may be killed at any moment.

    decide ──batch──▶ active worker ──10 ms in one question──▶ suspect: keeps that question only,
                          ▲                                    everything else moves to the spare at once
                          └── spare (started ahead) ◀── a new one starts
    suspect ──answers──▶ spare again          suspect ──200 ms──▶ killed; its question is unavailable

So a runaway rule costs its own question 200 ms, and those behind it the 10 to 15 until it is noticed. A worker that
stands still without having begun a question (stopped, swapped out) loses all of them to the spare. What nobody
answered when the deadline has passed is ``PolicyUnavailable``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from controlplane.authorization.answers import read_answer, refusal
from controlplane.authorization.bundle import Bundle
from controlplane.authorization.values import Decision, EntryPoint, PolicyUnavailable, Question
from controlplane.authorization.worker_process import Asked, WorkerProcess

ENGINE = "regorus-0.13"
# So that this loop can read one frame's answers while the worker is in the next; 8, 16 and 64 measured alike.
FRAME_QUESTIONS = 16
_LOOK_SECONDS = 0.005
_SUSPECT_SECONDS = 0.010
# A suspect is killed at the deadline; this is how much later its question is given up, and still < 250 ms.
_GRACE_SECONDS = 0.010
_START_SECONDS = 10.0
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
_RULES = [f"data.{entry.value}.decision" for entry in EntryPoint]
_RULE_OF = {entry: index for index, entry in enumerate(EntryPoint)}

Answer = Decision | PolicyUnavailable


class _Batch:
    """The questions of one ``decide`` call. The first answer to a question counts."""

    __slots__ = ("answers", "done", "encoded", "missing", "questions")

    def __init__(self, questions: Sequence[Question], done: asyncio.Future[None]) -> None:
        self.questions = questions
        self.encoded: list[bytes] = []
        self.answers: list[Answer | None] = [None] * len(questions)
        self.missing = len(questions)
        self.done = done

    def settle(self, index: int, answer: Answer) -> None:
        if self.answers[index] is None:
            self.answers[index] = answer
            self.missing -= 1
            if not self.missing and not self.done.done():
                self.done.set_result(None)


class EmbeddedEngine:
    """Evaluates ``bundle`` in ``workers`` processes and one spare. One event loop uses it."""

    def __init__(self, bundle: Bundle, workers: int = 1, deadline_seconds: float = 0.2) -> None:
        if workers < 1 or deadline_seconds <= 0:
            raise ValueError("workers must be ≥ 1 and deadline_seconds > 0")
        self._bundle = bundle
        self._load = {"files": dict(bundle.files), "data": bundle.data_json, "rules": _RULES}
        self._wanted = workers
        self._deadline_seconds = deadline_seconds
        self._active: list[WorkerProcess] = []
        self._spares: list[WorkerProcess] = []
        self._starting: list[WorkerProcess] = []
        self._suspects: list[WorkerProcess] = []
        self._ended: list[WorkerProcess] = []
        self._unplaced: list[Asked] = []
        self._watch: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._failures = 0
        self._trouble = "no worker has started"
        self._is_open = False
        self._full_strength: asyncio.Event = asyncio.Event()

    @property
    def revision(self) -> str:
        """The bundle's revision."""
        return self._bundle.revision

    @property
    def pids(self) -> list[int]:
        """Process ids of the live workers, those that answer first."""
        return [worker.pid for worker in self._workers()]

    async def start(self) -> None:
        """Start the workers and wait for them and the spare. Raises: PolicyUnavailable when they do not come within
        10 s or five attempts failed, as with a bundle they refuse; it goes on trying until ``close``."""
        self._is_open = True
        self._fill()
        waited = asyncio.get_running_loop().time() + _START_SECONDS
        while not self._full_strength.is_set():
            try:
                async with asyncio.timeout(0.05):
                    await self._full_strength.wait()
            except TimeoutError:
                if self._failures >= len(_RETRY_SECONDS) or asyncio.get_running_loop().time() > waited:
                    raise PolicyUnavailable(f"No policy worker started: {self._trouble}.") from None

    async def decide(self, questions: Sequence[Question]) -> list[Answer]:
        """See the port. Bounded by the deadline and 10 ms."""
        if not questions:
            return []
        loop = asyncio.get_running_loop()
        batch = _Batch(questions, loop.create_future())
        asked = []
        for index, question in enumerate(questions):
            encoded = self._encode(batch, index, question)
            if encoded is not None:
                asked.append(Asked(batch, index, _RULE_OF[question.entry], encoded))
        if not self._is_open:
            return [PolicyUnavailable("The policy engine is not running.") for _ in questions]
        self._place(asked)
        if batch.missing:
            giving_up = loop.call_later(self._deadline_seconds + _GRACE_SECONDS, self._give_up, batch)
            try:
                await batch.done
            finally:
                giving_up.cancel()
        return [one for one in batch.answers if one is not None]

    async def close(self) -> None:
        """Kill the workers and reap them; every question still asked is unavailable."""
        self._is_open = False
        for timer in (self._watch, self._retry):
            if timer is not None:
                timer.cancel()
        for worker in self._workers():
            worker.end("the engine was closed")
        self._abandon(self._unplaced, "The policy engine was closed.")
        self._unplaced = []
        ended, self._ended = self._ended, []
        for worker in ended:
            await asyncio.to_thread(worker.reap, 1.0)

    # What workers tell.

    def ready(self, worker: WorkerProcess) -> None:
        """A worker has loaded the bundle."""
        self._starting.remove(worker)
        self._spares.append(worker)
        self._failures = 0
        if len(self._active) + len(self._spares) > self._wanted:
            self._full_strength.set()
        self._promote()

    def answered(self, worker: WorkerProcess, questions: Sequence[Asked], answers: Sequence[tuple[bool, Any]]) -> None:
        """A worker has answered a frame."""
        for one, (is_value, answer) in zip(questions, answers, strict=True):
            batch: _Batch = one.batch
            if batch.answers[one.index] is None:
                batch.settle(one.index, self._read(batch.questions[one.index], one.encoded, is_value, answer))
        if worker in self._suspects and not worker.waiting:
            self._suspects.remove(worker)
            if len(self._spares) > 1:
                worker.end("it is one too many")
            else:
                self._spares.append(worker)
                self._promote()

    def died(self, worker: WorkerProcess, why: str) -> None:
        """A worker is gone: the question it was in has no answer, the others go on elsewhere."""
        self._ended = [one for one in self._ended if not one.reap()]
        self._ended.append(worker)
        was_starting = worker in self._starting
        for group in (self._active, self._spares, self._starting, self._suspects):
            if worker in group:
                group.remove(worker)
        stuck = worker.stuck_in
        left = [one for frame in worker.waiting for one in frame]
        worker.waiting.clear()
        if stuck is not None:
            self._abandon([stuck], f"The policy worker was lost in this question: {why}.")
        if not self._is_open:
            self._abandon(left, "The policy engine was closed.")
            return
        self._place([one for one in left if one is not stuck])
        if was_starting:
            self._trouble = why
            self._retry_later()
        else:
            self._fill()

    # Placing questions.

    def _place(self, asked: list[Asked]) -> None:
        asked = [one for one in asked if one.batch.answers[one.index] is None]
        if not asked:
            return
        self._promote()
        if not self._active:
            self._unplaced.extend(asked)
            return
        for begin in range(0, len(asked), FRAME_QUESTIONS):
            worker = min(self._active, key=lambda one: len(one.waiting))
            worker.ask(asked[begin : begin + FRAME_QUESTIONS])
        self._watch_later()

    def _promote(self) -> None:
        while len(self._active) < self._wanted and self._spares:
            self._active.append(self._spares.pop())
        if self._active and self._unplaced:
            asked, self._unplaced = self._unplaced, []
            self._place(asked)
        self._fill()

    def _fill(self) -> None:
        """Start workers until there is one spare, counting those on their way."""
        while self._is_open and self._retry is None and self._missing() > 0:
            try:
                self._starting.append(WorkerProcess(self, self._load))
            except OSError as problem:
                self._trouble = f"a worker process cannot be started: {problem.strerror}"
                self._retry_later()

    def _missing(self) -> int:
        return self._wanted + 1 - len(self._active) - len(self._spares) - len(self._starting)

    def _retry_later(self) -> None:
        if self._retry is None and self._is_open:
            wait = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
            self._failures += 1
            self._retry = asyncio.get_running_loop().call_later(wait, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._fill()

    # Watching for workers that stand still.

    def _watch_later(self) -> None:
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._watch = None
        now = asyncio.get_running_loop().time()
        for worker in [*self._active, *self._suspects]:
            # Answers may have come while this loop was busy: read them before judging.
            worker.read()
            if not worker.waiting or not worker.is_alive:
                continue
            progress = worker.progress()
            if progress != worker.seen_progress:
                worker.seen_progress, worker.seen_at = progress, now
            elif now - worker.seen_at >= self._deadline_seconds:
                worker.end(f"it stood still for {self._deadline_seconds * 1000:.0f} ms")
            elif worker in self._active and now - worker.seen_at >= _SUSPECT_SECONDS:
                self._suspect(worker)
        if any(worker.waiting for worker in (*self._active, *self._suspects)):
            self._watch_later()

    def _suspect(self, worker: WorkerProcess) -> None:
        self._active.remove(worker)
        self._suspects.append(worker)
        stuck = worker.stuck_in
        self._place([one for frame in worker.waiting for one in frame if one is not stuck])
        self._fill()

    # Answers.

    def _encode(self, batch: _Batch, index: int, question: Question) -> bytes | None:
        try:
            return question.encoded()
        except (TypeError, ValueError, RecursionError):
            refused = refusal(
                question,
                failure="invalid_input",
                message="The question is not JSON.",
                remedy="Report this: the control plane asked it.",
                revision=self.revision,
                engine=ENGINE,
            )
            batch.settle(index, refused)
            return None

    def _read(self, question: Question, encoded: bytes, is_value: bool, answer: str) -> Decision:
        if is_value:
            return read_answer(
                question,
                encoded,
                answer.encode(),
                rules=self._bundle.rules,
                revision=self.revision,
                engine=ENGINE,
            )
        return refusal(
            question,
            failure="malformed_answer",
            message=f"{question.entry.value}.decision failed: {answer}",
            remedy="Mend the rule at the place named; `stockade policy test` shows it.",
            revision=self.revision,
            engine=ENGINE,
            encoded=encoded,
        )

    def _give_up(self, batch: _Batch) -> None:
        why = self._trouble if not self._workers() else "the deadline passed"
        self._unplaced = [one for one in self._unplaced if one.batch is not batch]
        for index, answer in enumerate(batch.answers):
            if answer is None:
                batch.settle(index, PolicyUnavailable(f"The policy engine did not answer: {why}."))

    def _abandon(self, asked: Iterable[Asked], message: str) -> None:
        for one in asked:
            one.batch.settle(one.index, PolicyUnavailable(message))

    def _workers(self) -> list[WorkerProcess]:
        return [*self._active, *self._spares, *self._suspects, *self._starting]
