"""What happens to the attempts when the node's lease changes: frozen, thawed, ended after the hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio
import structlog

from dataplane.attempts import Attempt, Ending
from dataplane.leases import Lease, LeaseState
from sandboxes.driver import Driver, Feature
from sandboxes.spec import Tier

log = structlog.get_logger("stockade.node")


class Custody:
    """Holds the live attempts, by (attempt, fence). ``end`` is called for each that outlives the hold."""

    def __init__(
        self, lease: Lease, drivers: Mapping[Tier, Driver], end: Callable[[Attempt, Ending, str], None]
    ) -> None:
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self._lease = lease
        self._drivers = drivers
        self._end = end
        self._changed = anyio.Event()

    def changed(self) -> None:
        """The lease's terms are other than they were."""
        self._changed.set()

    async def renew(self, sent: float) -> None:
        """A heartbeat sent at ``sent`` was acknowledged, and its directives are obeyed: what is left may go on."""
        self._lease.renew(sent)
        if self._lease.held():
            for attempt in list(self.attempts.values()):
                if attempt.ending is None:
                    await attempt.thaw()
        self._changed.set()

    async def watch(self) -> None:
        """Follow the lease until cancelled."""
        while True:
            self._changed = anyio.Event()
            with anyio.move_on_after(self._lease.seconds_to_change() + 0.001):
                await self._changed.wait()
            state = self._lease.state()
            if state is LeaseState.HELD:
                continue
            self._lease.stop_effects()
            for attempt in list(self.attempts.values()):
                if state is LeaseState.OVER:
                    self._end(attempt, "frozen", "the node did not reach the control plane for the whole hold")
                elif self.can_freeze(attempt):
                    log.warning("frozen", attempt=attempt.assignment.attempt)
                    await attempt.freeze()

    def can_freeze(self, attempt: Attempt) -> bool:
        """Whether the attempt's tier can; one that cannot goes on computing, but without tools, until the hold ends."""
        code = attempt.assignment.code
        driver = self._drivers.get(Tier(code.sandbox.tier)) if code is not None and attempt.sandbox else None
        return driver is not None and Feature.FREEZE in driver.features
