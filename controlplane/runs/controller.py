"""Advances runs: takes events, applies transitions, commits them, and acts on what they say once it is durable.

    submit/report/timer/cancel ─▶ Machine ─▶ journal ─▶ (after the commit) events, assignments, cancellations
                                     └─▶ ready steps ─▶ Dispatcher: plan, ask policy, assign

All of it runs on one event loop, so a run's state is only ever changed between two awaits.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from controlplane.authorization.values import Decision
from controlplane.nodes.inventory import Inventory
from controlplane.runs.hub import Hub
from controlplane.runs.journal import Journal, JournalFailed
from controlplane.runs.state import RunState, StepState
from controlplane.runs.transitions import Machine, Outcome
from controlplane.store import Write, insert, upsert
from controlplane.tables import CallRow, DecisionRow
from controlplane.workflows.spec import Verb
from dataplane.protocol import Directive

log = structlog.get_logger(__name__)
Decided = Callable[[BaseException | None], None]


class Controller:
    """The open runs of this control plane."""

    def __init__(self, journal: Journal, inventory: Inventory, hub: Hub) -> None:
        self.journal = journal
        self.inventory = inventory
        self.hub = hub
        self.runs: dict[str, RunState] = {}
        self.attempts: dict[str, tuple[RunState, StepState]] = {}
        self.ready: list[tuple[RunState, StepState]] = []
        self.ready_event = asyncio.Event()
        self.model_ready: list[tuple[RunState, StepState]] = []
        self.model_event = asyncio.Event()
        self.abort: Callable[[str], None] = lambda _attempt: None
        self.pinned: dict[str, dict[str, str]] = {}
        self.reload: Callable[[str], Any] = lambda _run: None
        self._timers: list[tuple[int, int, str, str]] = []
        self._order = itertools.count()
        self._parked: dict[str, str] = {}
        self._timer_event = asyncio.Event()

    # -- applying ---------------------------------------------------------------------------------------------------

    def apply(
        self,
        run: RunState,
        act: Callable[[Machine], None],
        *,
        writes: Sequence[Write] = (),
        done: Decided | None = None,
    ) -> Outcome:
        """One transition: decide in memory now, commit in the background, act after the commit.

        A transition that breaks, and one of a run that is parked, is not stored: ``done`` gets ``JournalFailed``.
        """
        if run.parked is not None:
            return self._not_applied(done, "the run is being taken from the database again")
        machine = Machine(run=run, now_ns=time.time_ns())
        machine.more.extend(writes)
        try:
            act(machine)
            outcome = machine.outcome()
        except Exception as defect:  # of ours: memory may be half changed, and only this run's
            log.exception("a transition broke", run=run.id)
            self._park(run, defect)
            return self._not_applied(done, f"the transition broke: {defect!r}")
        for step in machine.dirty.values():
            if step.terminal and step.attempt is not None:
                self.attempts.pop(step.attempt, None)
        for timer in outcome.timers:
            self._schedule(timer.due_ns, run.id, timer.path)
        self._queue(run, outcome, done)
        self.dispatch(run, outcome.dispatch)
        return outcome

    def _not_applied(self, done: Decided | None, why: str) -> Outcome:
        if done is not None:
            done(JournalFailed(why))
        return Outcome(writes=[], events=[], dispatch=[], cancels=[], timers=[], finished=False)

    async def begin(self, run: RunState, pinned: dict[str, str], writes: Sequence[Write]) -> None:
        """A new run: stored, then started, also if nobody waits for it any more. Raises ``JournalFailed``.

        Returns when its first steps are stored too, so that whoever looks next finds them.
        """
        self.runs[run.id], self.pinned[run.id] = run, pinned
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def stored(error: BaseException | None) -> None:
            if error is None:
                self.apply(run, lambda machine: machine.start(), done=started)
                return
            self.runs.pop(run.id, None)
            self.pinned.pop(run.id, None)
            if not future.done():
                future.set_exception(error)

        def started(_error: BaseException | None) -> None:
            # If that failed the run is parked and tried again: it is admitted all the same.
            if not future.done():
                future.set_result(None)

        self.journal.append(writes, stored)
        await future

    def dispatch(self, run: RunState, steps: Sequence[StepState]) -> None:
        """Put ready steps in line: for the dispatcher what goes to a node, for the caller of models the rest."""
        for step in steps:
            calls_model = step.spec.verb is Verb.LLM
            (self.model_ready if calls_model else self.ready).append((run, step))
            (self.model_event if calls_model else self.ready_event).set()

    def _queue(self, run: RunState, outcome: Outcome, done: Decided | None) -> None:
        def committed(error: BaseException | None) -> None:
            if error is not None:
                self._park(run, error)
            else:
                for cancel in outcome.cancels:
                    if cancel.node:
                        self.tell_cancel(cancel.node, cancel.attempt, cancel.fence, cancel.reason)
                    else:
                        self.abort(cancel.attempt)
                if outcome.finished:
                    self.runs.pop(run.id, None)
                    self.pinned.pop(run.id, None)
                if outcome.events:
                    self.hub.committed(run.id, outcome.events, outcome.finished)
            if done is not None:
                done(error)

        if outcome.writes:
            self.journal.append(outcome.writes, committed)
        elif done is not None:
            # Nothing to write, but the answer still waits for what was queued before it.
            self.journal.append((), committed)

    async def applied(self, run: RunState, act: Callable[[Machine], None], writes: Sequence[Write] = ()) -> Outcome:
        """``apply`` and wait until it is durable. Raises ``JournalFailed``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        outcome = self.apply(run, act, writes=writes, done=done)
        await future
        return outcome

    def tell_cancel(self, node_id: str, attempt: str, fence: int, reason: str) -> None:
        """Send a cancellation with the node's next pull."""
        node = self.inventory.nodes.get(node_id)
        if node is not None:
            node.direct(Directive(kind="cancel", attempt=attempt, fence=fence, reason=reason))

    def _park(self, run: RunState, error: BaseException) -> None:
        """A transition was not stored: what memory says is ahead of the database, so take it from there again."""
        if run.parked is None:
            run.parked = str(error)
            log.error("run parked", run=run.id, error=str(error))
            self.runs.pop(run.id, None)
            for attempt, (owner, step) in list(self.attempts.items()):
                if owner is run:
                    del self.attempts[attempt]
                    self._parked[attempt] = run.id
                    if step.node is None:
                        self.abort(attempt)
            self.reload(run.id)

    # -- timers -----------------------------------------------------------------------------------------------------

    def _schedule(self, due_ns: int, run: str, path: str) -> None:
        heapq.heappush(self._timers, (due_ns, next(self._order), run, path))
        self._timer_event.set()

    def watch(self, run: RunState, step: StepState) -> None:
        """After a restart: wake the step when it is due."""
        if step.due_ns is not None:
            self._schedule(step.due_ns, run.id, step.path)

    def again(self, run: RunState, step: StepState, seconds: float) -> None:
        """Try a parked step again after a while, without writing anything for it."""
        self._schedule(time.time_ns() + int(seconds * 1e9), run.id, step.path)

    async def run_timers(self) -> None:
        """Fire timers for ever."""
        while True:
            self._timer_event.clear()
            now = time.time_ns()
            while self._timers and self._timers[0][0] <= now:
                _due, _order, run_id, path = heapq.heappop(self._timers)
                self._fire(run_id, path)
            wait = 1.0 if not self._timers else max(0.0, min(1.0, (self._timers[0][0] - time.time_ns()) / 1e9))
            try:
                await asyncio.wait_for(self._timer_event.wait(), wait)
            except TimeoutError:
                continue

    def _fire(self, run_id: str, path: str) -> None:
        run = self.runs.get(run_id)
        step = run.steps.get(path) if run is not None else None
        if run is None or step is None or step.terminal:
            return
        if step.due_ns is not None:
            if step.due_ns <= time.time_ns():
                self.apply(run, lambda machine: machine.timer(step))
        elif step.attempt is None and step.status in ("ready", "waiting"):
            self.dispatch(run, [step])

    # -- what others bring ------------------------------------------------------------------------------------------

    def current(self, attempt: str, fence: int) -> tuple[RunState, StepState] | None:
        """The step this attempt is current for; ``None``: the fence is stale."""
        found = self.attempts.get(attempt)
        if found is None or found[1].attempt != attempt or found[1].fence != fence or found[0].parked:
            return None
        return found

    def is_parked(self, attempt: str) -> bool:
        """Whether the attempt's run is being taken from the database again: neither current nor stale."""
        return attempt in self._parked

    def taken_up(self, run_id: str) -> None:
        """The run is in memory again, or at its end."""
        self._parked = {attempt: run for attempt, run in self._parked.items() if run != run_id}

    def node_gone(self, node_id: str, kind: str, message: str) -> None:
        """Every attempt of a node is over: dispatch the steps again."""
        node = self.inventory.nodes.get(node_id)
        if node is None:
            return
        node.end_all()
        for attempt, (run, step) in list(self.attempts.items()):
            if step.node == node_id and step.attempt == attempt:
                del self.attempts[attempt]
                self.apply(run, lambda machine, step=step: machine.lost(step, kind, message))  # type: ignore[misc]
        self.inventory.changed.set()


def decision_write(tenant: str, decision: Decision, run: str | None, path: str, partition: int, now_ns: int) -> Write:
    """The decision log's row, for the commit of what was decided."""
    place = {"tenant": tenant, "partition": partition, "v": 1, "run": run, "path": path, "at_ns": now_ns}
    return insert(DecisionRow, place | decision.log_row())


def call_write(run: RunState, step: StepState, row: dict[str, Any]) -> Write:
    """One effect's row as it stands; ``row`` has the columns that are not the run's or the step's."""
    base = {
        "tenant": run.tenant,
        "partition": run.partition,
        "run": run.id,
        "v": 1,
        "path": step.path,
        "branch": 0,
    }
    return upsert(CallRow, {**base, **row})


__all__ = ["Controller", "JournalFailed", "call_write", "decision_write"]
