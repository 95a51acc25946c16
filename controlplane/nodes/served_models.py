"""What one node is to serve, and what it says it serves: its word is bounded and cleaned."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field

import msgspec

from controlplane.nodes.control_characters import CONTROL
from dataplane.model_wire import (
    LOG_TAIL_BYTES,
    DesiredModels,
    EngineState,
    ModelFile,
    ModelLog,
    ModelReplica,
    ModelReport,
    ModelState,
)
from scheduler.cluster import ModelView

STATES_MOST = 128
FILES_MOST = 1000
TEXT_MOST = 500


@dataclass(kw_only=True, eq=False)
class ServedModels:
    """``reserved`` is CPU (milli) and memory (bytes) of each replica, until the node says that it is gone."""

    wanted: dict[str, ModelReplica] = field(default_factory=dict)
    reserved: dict[str, tuple[int, int]] = field(default_factory=dict)
    states: dict[str, ModelState] = field(default_factory=dict)
    engines: dict[str, EngineState] = field(default_factory=dict)
    files: dict[str, ModelFile] = field(default_factory=dict)
    asked: dict[str, asyncio.Future[ModelLog]] = field(default_factory=dict)
    """Log ends that were asked for, by replica."""
    loads: dict[str, float] = field(default_factory=dict)
    """Seconds that the last replica of a deployment took here until it served."""
    _starting: dict[str, float] = field(default_factory=dict)

    @property
    def desired(self) -> DesiredModels:
        """All that the node is to serve, with a revision that is the same for the same wishes."""
        replicas = sorted(self.wanted.values(), key=lambda one: one.replica)
        return DesiredModels(revision=hashlib.sha256(msgspec.json.encode(replicas)).hexdigest(), replicas=replicas)

    def heard(self, report: ModelReport) -> list[str]:
        """Take in what the node says; the replicas that it had and has no more, which nobody wants there."""
        self.states = {one.replica: _cleaned(one) for one in report.states[:STATES_MOST]}
        self._measure(time.monotonic())
        if report.engines is not None:
            self.engines = {one.name: _named(one) for one in report.engines[:STATES_MOST]}
        if report.files is not None:
            self.files = {one.name: one for one in report.files[:FILES_MOST]}
        if report.revision != self.desired.revision:
            return []
        gone = [one for one in self.reserved if one not in self.states and one not in self.wanted]
        for replica in gone:
            del self.reserved[replica]
        return gone

    def serving(self) -> dict[str, ModelView]:
        """Deployments that have a ready server here: what its load took, and how many requests wait for each slot."""
        return {
            one.deployment: ModelView(
                load_seconds=self.loads.get(one.deployment), queued=one.waiting / max(1, one.slots)
            )
            for one in self.states.values()
            if one.state == "ready"
        }

    def _measure(self, now: float) -> None:
        """How long servers take from when they are first seen starting until they are ready."""
        for replica, one in self.states.items():
            if one.state == "starting":
                self._starting.setdefault(replica, now)
            elif one.state == "ready" and replica in self._starting:
                self.loads[one.deployment] = now - self._starting.pop(replica)
        self._starting = {replica: since for replica, since in self._starting.items() if replica in self.states}
        self.loads = {name: seconds for name, seconds in self.loads.items() if name in self._deployments()}

    def _deployments(self) -> set[str]:
        return {one.deployment for one in self.states.values()}

    def answer(self, report: ModelReport) -> DesiredModels | None:
        """What the node must hear: nothing, if it follows the wishes there are."""
        desired = self.desired
        return None if report.revision == desired.revision else desired

    def told(self, log: ModelLog) -> bool:
        """A log's end has come; ``False`` if nobody asked."""
        waiting = self.asked.pop(log.replica, None)
        if waiting is None or waiting.done():
            return False
        waiting.set_result(ModelLog(replica=log.replica, offset=max(0, log.offset), data=log.data[-LOG_TAIL_BYTES:]))
        return True


def _cleaned(state: ModelState) -> ModelState:
    state.detail = CONTROL.sub(" ", state.detail[:TEXT_MOST])
    for name in ("slots", "running", "waiting", "restarts", "log_bytes"):
        setattr(state, name, max(0, min(getattr(state, name), 2**53)))
    if state.token_usage is not None:
        state.token_usage = min(1.0, max(0.0, state.token_usage)) if state.token_usage == state.token_usage else None
    return state


def _named(state: EngineState) -> EngineState:
    state.version = CONTROL.sub(" ", state.version[:TEXT_MOST])
    state.absent = CONTROL.sub(" ", state.absent[:TEXT_MOST])
    return state
