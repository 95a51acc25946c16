"""The node's right to act: held, lapsed (everything frozen), over (everything killed).

    held ──no acknowledged heartbeat for lease_seconds──► lapsed ──for hold_seconds──► over
      ▲────────────────acknowledged heartbeat────────────────┴───────────────────────────┘

Time runs from when the last acknowledged heartbeat was *sent*: the control plane cannot have counted from earlier.
Every question looks at the clock, so a node that was stopped as a whole finds its lease lapsed before it acts again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from enum import StrEnum

import anyio


class LeaseState(StrEnum):
    HELD = "held"
    LAPSED = "lapsed"
    OVER = "over"


def boot_seconds() -> float:
    """A monotonic clock that also counts while the machine sleeps, where the system has one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Lease:
    """One lease per node. ``clock`` gives seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = boot_seconds) -> None:
        self.clock = clock
        self._sent = float("-inf")
        self._lease_seconds = 0.0
        self._hold_seconds = 0.0
        self._renewed = anyio.Event()
        self._guards: set[anyio.CancelScope] = set()

    def configure(self, lease_seconds: float, hold_seconds: float) -> None:
        self._lease_seconds, self._hold_seconds = lease_seconds, hold_seconds

    def renew(self, sent: float) -> None:
        """A heartbeat sent at ``sent`` was acknowledged."""
        self._sent = max(self._sent, sent)
        if self.held():
            self._renewed.set()
            self._renewed = anyio.Event()

    def state(self) -> LeaseState:
        idle = self.clock() - self._sent
        if idle <= self._lease_seconds:
            return LeaseState.HELD
        return LeaseState.LAPSED if idle <= self._lease_seconds + self._hold_seconds else LeaseState.OVER

    def held(self) -> bool:
        return self.clock() - self._sent <= self._lease_seconds

    def seconds_to_change(self) -> float:
        """Until ``state`` changes by time alone; infinite once over."""
        idle = self.clock() - self._sent
        for edge in (self._lease_seconds, self._lease_seconds + self._hold_seconds):
            if idle <= edge:
                return edge - idle
        return float("inf")

    async def wait_held(self) -> None:
        """Return when the lease is held: at once, or after the next acknowledged heartbeat."""
        while not self.held():
            await self._renewed.wait()

    @contextlib.contextmanager
    def guard(self) -> Iterator[anyio.CancelScope]:
        """What runs inside is stopped by ``stop_effects``; ``cancelled_caught`` then tells that it was."""
        with anyio.CancelScope() as scope:
            self._guards.add(scope)
            try:
                yield scope
            finally:
                self._guards.discard(scope)

    def stop_effects(self) -> None:
        """End every guarded call now."""
        for scope in tuple(self._guards):
            scope.cancel()
