"""The policy engine for one machine: regorus in worker processes that may be killed at any moment.

    decide ──frames──▶ active workers ──2 ms of processor in one question──▶ suspect: keeps that question only,
                           ▲                                                 everything else moves on at once
                           └── spares ◀──fork, a few ms── template (has loaded the bundle)
    suspect ──answers──▶ its answer counts; it ends
    suspect ──200 ms──▶ killed; its question is unavailable, and the next time quarantined:
    decide ──quarantined──▶ one spare at a time, alone

So a runaway rule costs its own question 200 ms, those behind it the 10 to 15 until it is noticed, and the second
time nobody anything. A batch that lacks nothing else returns without it. Runaways have the processor last, and only
four run at once: another one ends the one that has computed longest.
A worker that stands still without having begun a question (stopped, swapped out) loses all of them to others.
What nobody answered when the deadline has passed is ``PolicyUnavailable``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

from controlplane.authorization.answers import AnswerReader
from controlplane.authorization.batch import Answer, Asked, Batch
from controlplane.authorization.bundle import Bundle
from controlplane.authorization.quarantine import Quarantine
from controlplane.authorization.values import EntryPoint, PolicyUnavailable, Question
from controlplane.authorization.worker_process import ENDED, Template, WorkerProcess

ENGINE = "regorus-0.13"
# So that this loop can read one frame's answers while the worker is in the next; 8, 16 and 64 measured alike.
FRAME_QUESTIONS = 16
# While suspects run, others of their kind are likely near: none goes down with one.
_WARY_FRAME_QUESTIONS = 1
_SPARES = 3
# While suspects run, this many spares more than wanted may answer: what moves on may hold another runaway.
_HELPERS_MOST = 4
_SUSPECTS_MOST = 4
_LOOK_SECONDS = 0.005
# Of the processor, in one question. A worker that only waits for the processor is no slower than any other here.
_SUSPECT_SECONDS = 0.002
# By the clock, however little it computed: it was stopped, or is swapped out.
_STOPPED_SECONDS = 0.050
# Who computed this long in one question, or whose process ended in it, is run alone the next time.
_GUILTY_SECONDS = 0.005
# This old, a batch returns without what runs for long in it.
_PATIENCE_SECONDS = 0.020
_LAST_NICE = 19
# A suspect is killed at the deadline; this is how much later its question is given up, and still < 250 ms.
_GRACE_SECONDS = 0.010
_START_SECONDS = 10.0
_FORK_SECONDS = 1.0
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
_RULES = [f"data.{entry.value}.decision" for entry in EntryPoint]
_RULE_OF = {entry: index for index, entry in enumerate(EntryPoint)}


class EmbeddedEngine:
    """Evaluates ``bundle`` in ``workers`` processes, with three spares. One event loop uses it."""

    def __init__(self, bundle: Bundle, workers: int = 1, deadline_seconds: float = 0.2) -> None:
        if workers < 1 or deadline_seconds <= 0:
            raise ValueError("workers must be ≥ 1 and deadline_seconds > 0")
        self._bundle = bundle
        self._load = {"files": dict(bundle.files), "data": bundle.data_json, "rules": _RULES}
        self._reader = AnswerReader(rules=bundle.rules, revision=bundle.revision, engine=ENGINE)
        self._wanted = workers
        self._deadline_seconds = deadline_seconds
        self._template: Template | None = None
        self._active: list[WorkerProcess] = []
        self._spares: list[WorkerProcess] = []
        self._starting: list[WorkerProcess] = []
        self._suspects: list[WorkerProcess] = []
        self._ended: list[Template] = []
        self._unplaced: list[Asked] = []
        self._quarantine = Quarantine()
        self._quarantined: deque[Asked] = deque()
        self.ran_alone = 0
        """How many questions were kept from all others, because they had cost a worker before."""
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
    def name(self) -> str:
        """Always ``regorus``."""
        return "regorus"

    @property
    def is_ready(self) -> bool:
        """At least one worker has started."""
        return bool(self.pids)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that have started, those that answer first."""
        return [worker.pid for worker in self._workers() if worker.pid]

    @property
    def template_pid(self) -> int | None:
        """The process that workers are forked from; None while there is none."""
        return self._template.pid if self._template is not None else None

    async def start(self) -> None:
        """Start the workers and wait for them and the spares. Raises: PolicyUnavailable when they do not come within
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
        if not self._is_open:
            return [PolicyUnavailable("The policy engine is not running.") for _ in questions]
        loop = asyncio.get_running_loop()
        asked, now = [], loop.time()
        batch = Batch(questions, loop.create_future(), now)
        for index, question in enumerate(questions):
            try:
                text = question.encoded().decode()
            except (TypeError, ValueError, RecursionError):
                batch.settle(index, self._reader.not_json(question))
                continue
            one = Asked(batch, index, _RULE_OF[question.entry], text)
            if self._quarantine.holds(question, now):
                self._quarantined.append(one)
            else:
                asked.append(one)
        self._place(asked)
        self._isolate()
        if batch.missing:
            giving_up = loop.call_at(now + self._deadline_seconds + _GRACE_SECONDS, self._give_up, batch)
            try:
                await batch.done
            finally:
                giving_up.cancel()
        return [one for one in batch.answers if one is not None]

    async def close(self) -> None:
        """Kill the processes and reap them; every question still asked is unavailable."""
        self._is_open = False
        for timer in (self._watch, self._retry):
            if timer is not None:
                timer.cancel()
        for worker in self._workers():
            worker.end("the engine was closed")
        self._abandon([*self._unplaced, *self._quarantined], "The policy engine was closed.")
        self._unplaced = []
        self._quarantined.clear()
        if self._template is not None:
            self._template.retire()
            self._ended.append(self._template)
            self._template = None
        ended, self._ended = self._ended, []
        for template in ended:
            if not await asyncio.to_thread(template.reap, 1.0):
                await asyncio.to_thread(template.reap, 1.0)

    # What the processes tell.

    def loaded(self, template: Template) -> None:
        """The template has loaded the bundle."""
        self._fill()

    def lost(self, template: Template, why: str) -> None:
        """The template is gone, its workers with it."""
        self._ended = [one for one in self._ended if not one.reap()]
        self._ended.append(template)
        self._template = None
        self._trouble = why
        for worker in self._workers():
            worker.end(why)
        if template.is_loaded:
            self._fill()
        else:
            self._retry_later()

    def ready(self, worker: WorkerProcess) -> None:
        """A worker can be asked."""
        self._starting.remove(worker)
        self._spares.append(worker)
        self._failures = 0
        if len(self._active) + len(self._spares) >= self._wanted + _SPARES:
            self._full_strength.set()
        self._promote()
        self._isolate()

    def answered(self, worker: WorkerProcess, questions: Sequence[Asked], answers: Sequence[tuple[bool, str]]) -> None:
        """A worker has answered a frame."""
        for one, (is_value, answer) in zip(questions, answers, strict=False):
            if not one.is_settled:
                read = self._reader.read if is_value else self._reader.failed
                one.settle(read(one.question, answer))
                if worker.is_alone:
                    self._release(one.question)
        if worker in self._suspects:
            worker.end("it was slow")

    def died(self, worker: WorkerProcess, why: str) -> None:
        """A worker is gone: the question it was in has no answer, the others go on elsewhere."""
        was_starting, was_suspect = worker in self._starting, worker in self._suspects
        for group in (self._active, self._spares, self._starting, self._suspects):
            if worker in group:
                group.remove(worker)
        stuck, left = worker.stuck_in, [one for frame in worker.waiting for one in frame]
        if was_suspect:  # the others have moved on already
            left = [one for one in left if one is worker.keeps]
        worker.waiting.clear()
        if stuck is not None and (worker.was_busy_seconds >= _GUILTY_SECONDS or why == ENDED):
            self._quarantine.add(stuck.question, asyncio.get_running_loop().time())
        if stuck in left:
            self._abandon([stuck], f"The policy worker was lost in this question: {why}.")
        if not self._is_open:
            self._abandon(left, "The policy engine was closed.")
            return
        self._place([one for one in left if one is not stuck])
        if was_starting:
            self._trouble = why
            self._retry_later()
        self._promote()
        self._isolate()

    # Placing questions.

    def _place(self, asked: list[Asked]) -> None:
        asked = [one for one in asked if not one.is_settled]
        if not asked:
            return
        self._promote()
        if not self._active:
            self._unplaced.extend(asked)
            self._watch_later()
            return
        size = _WARY_FRAME_QUESTIONS if self._suspects else FRAME_QUESTIONS
        for begin in range(0, len(asked), size):
            worker = min(self._active, key=lambda one: len(one.waiting)) if len(self._active) > 1 else self._active[0]
            worker.ask(asked[begin : begin + size])
        self._watch_later()

    def _promote(self) -> None:
        goal = self._wanted + min(_HELPERS_MOST, len(self._suspects))
        while len(self._active) < goal and self._spares:
            self._active.append(self._spares.pop())
        if len(self._active) > goal:
            idle = [worker for worker in self._active if not worker.waiting][: len(self._active) - goal]
            self._active = [worker for worker in self._active if worker not in idle]
            self._spares += idle
        if self._active and self._unplaced:
            asked, self._unplaced = self._unplaced, []
            self._place(asked)
        self._fill()

    def _isolate(self) -> None:
        """Give the next quarantined question a worker of its own, if none has one."""
        if not self._quarantined or any(worker.is_alone for worker in self._suspects):
            return
        while self._quarantined and self._quarantined[0].is_settled:
            self._quarantined.popleft()
        if self._quarantined and self._spares:
            worker = self._spares.pop()
            self.ran_alone += 1
            worker.is_alone = True
            one = self._quarantined.popleft()
            worker.stand_back(one, _LAST_NICE)
            self._suspects.append(worker)
            worker.ask([one])
            self._fill()
            self._watch_later()

    def _release(self, question: Question) -> None:
        self._quarantine.release(question)
        asked, self._quarantined, now = self._quarantined, deque(), asyncio.get_running_loop().time()
        for one in asked:
            if self._quarantine.holds(one.question, now):
                self._quarantined.append(one)
        self._place([one for one in asked if one not in self._quarantined])

    def _fill(self) -> None:
        """Start workers until there are three spares, counting those on their way."""
        if not self._is_open or self._retry is not None:
            return
        try:
            if self._template is None:
                self._template = Template(self, self._load)
            elif self._template.is_loaded:
                for _ in range(self._missing()):
                    self._starting.append(self._template.fork())
                    self._watch_later()
        except OSError as problem:
            self._trouble = f"a worker process cannot be started: {problem.strerror}"
            self._retry_later()

    def _missing(self) -> int:
        return self._wanted + _SPARES - len(self._active) - len(self._spares) - len(self._starting)

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
        if self._watch is None and self._is_open:
            self._watch = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._watch = None
        now = asyncio.get_running_loop().time()
        for worker in [*self._active, *self._suspects]:
            # Answers may have come while this loop was busy: read them before judging.
            worker.read()
            if not worker.waiting or not worker.is_alive:
                continue
            if worker in self._suspects and all(one.is_settled for frame in worker.waiting for one in frame):
                worker.end("its questions were given up")
                continue
            if worker.look():
                continue
            still = now - worker.seen_at
            if still >= self._deadline_seconds:
                worker.end(f"it stood still for {self._deadline_seconds * 1000:.0f} ms")
            elif worker in self._active and (worker.busy_seconds >= _SUSPECT_SECONDS or still >= _STOPPED_SECONDS):
                self._suspect(worker)
        self._let_go(now)
        self._look_at_starting(now)
        if self._starting or self._quarantined or any(worker.waiting for worker in (*self._active, *self._suspects)):
            self._watch_later()

    def _let_go(self, now: float) -> None:
        """Let batches return that lack nothing but what runs for long: other steps wait for the whole batch."""
        held: dict[Batch, list[Asked]] = {}
        for worker in self._suspects:
            one = worker.keeps
            if one is not None and not one.is_settled and worker.busy_seconds >= _GUILTY_SECONDS:
                held.setdefault(one.batch, []).append(one)
        for one in self._quarantined:
            if not one.is_settled:
                held.setdefault(one.batch, []).append(one)
        for batch, ones in held.items():
            is_old = now - batch.asked_at >= _PATIENCE_SECONDS
            if is_old and len(ones) == batch.missing < len(batch.questions) and batch.is_of_many_steps:
                self._abandon(ones, "All that other steps asked with it had been answered; alone it has more time.")

    def _look_at_starting(self, now: float) -> None:
        for worker in list(self._starting):
            worker.read()
        if self._starting and now - self._starting[0].seen_at >= _FORK_SECONDS and self._template is not None:
            self._template.end(f"it did not fork for {_FORK_SECONDS:.0f} s")

    def _suspect(self, worker: WorkerProcess) -> None:
        worker.stand_back(worker.stuck_in, _LAST_NICE if worker.busy_seconds >= _SUSPECT_SECONDS else 0)
        moving = [one for frame in worker.waiting for one in frame if one is not worker.keeps]
        self._active.remove(worker)
        self._suspects.append(worker)
        if len(self._suspects) > _SUSPECTS_MOST:
            max(self._suspects, key=lambda one: one.busy_seconds).end("too many questions ran for long at once")
        self._place(moving)
        self._fill()

    # Answers.

    def _give_up(self, batch: Batch) -> None:
        for worker in list(self._suspects):
            if worker.keeps is not None and worker.keeps.batch is batch and not worker.keeps.is_settled:
                worker.end("the deadline passed")
        why = self._trouble if not self._workers() else "the deadline passed"
        self._unplaced = [one for one in self._unplaced if one.batch is not batch]
        for index, answer in enumerate(batch.answers):
            if answer is None:
                batch.settle(index, PolicyUnavailable(f"The policy engine did not answer: {why}."))

    def _abandon(self, asked: Iterable[Asked], message: str) -> None:
        for one in asked:
            one.settle(PolicyUnavailable(message))

    def _workers(self) -> list[WorkerProcess]:
        return [*self._active, *self._spares, *self._suspects, *self._starting]
