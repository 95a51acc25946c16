"""Steps that wait for a full node that is better placed than a free one (``scheduler.delay``), and until when.

They are part of every plan, the longest waiting first, so that each plan decides anew and nobody takes their place.
A bounded number may wait so; the next one takes the cheapest free node.
"""

from __future__ import annotations

import time

from controlplane.runs.controller import Controller
from controlplane.runs.state import RunState, StepState
from scheduler.delay import Patience

WAITING_MOST = 64
FIRST_SECONDS = 3600.0
"""No step waits for a node that will be full for longer than this."""


class Deferrals:
    """Those of one control plane."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._waiting: dict[tuple[str, str], tuple[RunState, StepState]] = {}

    def pairs(self) -> list[tuple[RunState, StepState]]:
        """Who waits, the longest first."""
        return list(self._waiting.values())

    def patience(self, step: StepState) -> float:
        """How much longer the step may wait for a better node, in seconds."""
        if step.patience is not None:
            return step.patience.left(time.monotonic())
        return FIRST_SECONDS if len(self._waiting) < WAITING_MOST else 0.0

    def wait(self, run: RunState, step: StepState, seconds: float) -> None:
        """The step is expected to wait so long. The first such estimate bounds the wait."""
        self._waiting[run.id, step.path] = (run, step)
        if step.patience is None:
            now = time.monotonic()
            step.patience = Patience.of(now, seconds)
            self._controller.again(run, step, step.patience.left(now))

    def stop(self, run: RunState, step: StepState) -> None:
        """It has a place, or waits for any place, or is over."""
        self._waiting.pop((run.id, step.path), None)

    def placed(self, run: RunState, step: StepState) -> None:
        """It has a place: another attempt may wait anew."""
        self.stop(run, step)
        step.patience = None
