"""Chooses a replica: the one that holds the longest beginning of the prompt, unless it is busier than the least busy
one by a bound; else the least busy; among equals the one chosen longest ago.

Load is counted here, from the choice to the end of the answer or its abort. A replica takes ``slots`` calls and as many
waiting; beyond that callers wait here or are told to come back. One that failed is left alone for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from controlplane.inference.gateway.prefixes import PrefixIndex
from controlplane.inference.values import Replica

AFFINITY_BOUND = 4
"""How much busier than the least busy replica the prefix's holder may be."""
QUEUE_FACTOR = 2
FAILED_SECONDS = 0.5
FAILED_MOST_SECONDS = 15.0
REMEMBERED_MOST = 4096


class NoReplica(Exception):
    """None of the replicas is ready (and not tried yet)."""


class AllBusy(Exception):
    """Every ready replica has as much as it may have."""


class Ticket:
    """One call's place on a replica. ``release`` it once the call is over; twice is harmless."""

    def __init__(self, router: Router, replica: Replica) -> None:
        self.replica = replica
        self._router: Router | None = router

    def release(self) -> None:
        """Give the place back."""
        router, self._router = self._router, None
        if router is not None:
            router.released(self.replica.id)


class Router:
    """All calls of one gateway process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._outstanding: dict[str, int] = {}
        self._chosen: dict[str, int] = {}
        self._failed: dict[str, tuple[int, float]] = {}  # how often, and until when it is left alone
        self._streak: dict[str, int] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._choices = 0
        self.prefixes = PrefixIndex()

    def outstanding(self, replica: str) -> int:
        """Calls it has now."""
        return self._outstanding.get(replica, 0)

    def choose(self, replicas: Sequence[Replica], prompt: Sequence[bytes], tried: Collection[str] = ()) -> Ticket:
        """Take a place. Raises: NoReplica, AllBusy."""
        ready = [one for one in replicas if one.ready and one.id not in tried]
        if not ready:
            raise NoReplica
        now = self._clock()
        # Where all have failed lately, one of them is as good a guess as any.
        well = [one for one in ready if self._failed.get(one.id, (0, 0.0))[1] <= now] or ready
        free = [one for one in well if self.outstanding(one.id) < one.slots * QUEUE_FACTOR]
        if not free:
            raise AllBusy
        least = min(free, key=self._order)
        bound = self.outstanding(least.id) + AFFINITY_BOUND
        caches = {self._cache_of(one.id): one for one in free}
        held = {caches[key].id: blocks for key, blocks in self.prefixes.matched(prompt, caches).items()}
        near = [one for one in free if one.id in held and self.outstanding(one.id) <= bound]
        chosen = min(near, key=lambda one: (-held[one.id], *self._order(one)), default=least)
        self._outstanding[chosen.id] = self.outstanding(chosen.id) + 1
        self._choices += 1
        self._chosen[chosen.id] = self._choices
        self._forget_old()
        self.prefixes.sent(prompt, self._cache_of(chosen.id))
        return Ticket(self, chosen)

    async def wait(self) -> None:
        """Return when a place was given back; the first who waits is woken first."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._wake()  # it was for somebody who still waits
            raise
        finally:
            if not future.done():
                future.cancel()

    def released(self, replica: str) -> None:
        """A ticket came back."""
        left = self.outstanding(replica) - 1
        if left > 0:
            self._outstanding[replica] = left
        else:
            self._outstanding.pop(replica, None)
        self._wake()

    def answered(self, replica: str) -> None:
        """It works. How often it failed stays known, as the name of its cache."""
        times, until = self._failed.get(replica, (0, 0.0))
        if until:
            self._failed[replica] = (times, 0.0)
            self._streak.pop(replica, None)

    def failed(self, replica: str) -> None:
        """It could not be reached, or broke: leave it alone, longer each time. Its cache is taken to be lost."""
        streak = self._streak[replica] = self._streak.get(replica, 0) + 1
        pause = min(FAILED_MOST_SECONDS, FAILED_SECONDS * 2.0 ** min(streak - 1, 10))
        self._failed[replica] = (self._failed.get(replica, (0, 0.0))[0] + 1, self._clock() + pause)

    def _cache_of(self, replica: str) -> str:
        """What the index knows a replica by: another one each time it has failed, for its cache is then lost."""
        return f"{replica}#{self._failed[replica][0]}" if replica in self._failed else replica

    def _forget_old(self) -> None:
        """Replicas come and go under new ids; what is remembered of idle ones is only worth so much."""
        if len(self._chosen) > REMEMBERED_MOST:
            self._chosen = {one: when for one, when in self._chosen.items() if one in self._outstanding}
            self._failed = {one: when for one, when in self._failed.items() if one in self._outstanding}
            self._streak = {one: when for one, when in self._streak.items() if one in self._outstanding}

    def _order(self, replica: Replica) -> tuple[int, int]:
        return self.outstanding(replica.id), self._chosen.get(replica.id, 0)

    def _wake(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
