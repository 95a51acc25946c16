"""Spares: sandboxes whose container runs already and whose Python waits for its job.

A spare is made for a key, whatever the engine must know beforehand, and taken at most once. The most recently wanted
keys share the places; one task makes what is missing, one after the other.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from sandboxes.errors import DriverFailed


class Spare(Protocol):
    """What is pooled."""

    def is_alive(self) -> bool:
        """Whether it can still be taken. Does not block."""
        ...


_Key = TypeVar("_Key")
_Spare = TypeVar("_Spare", bound=Spare)


class Pool(Generic[_Key, _Spare]):
    """At most ``size`` spares. ``make`` and ``drop`` take as long as they take; only ``make`` may fail."""

    def __init__(
        self, size: int, make: Callable[[_Key], Awaitable[_Spare]], drop: Callable[[_Spare], Awaitable[None]]
    ) -> None:
        self._size, self._make, self._drop = size, make, drop
        self._recent: list[_Key] = []
        self._spares: list[tuple[_Key, _Spare]] = []
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def spares(self) -> tuple[_Spare, ...]:
        """Those there are."""
        return tuple(spare for _, spare in self._spares)

    def take(self, key: _Key) -> _Spare | None:
        """A live spare of this key, now the caller's; ``None`` if there is none. Either way more are made."""
        taken = next((spare for known, spare in self._spares if known == key and spare.is_alive()), None)
        if taken is not None:
            self._spares.remove((key, taken))
        self.want(key)
        return taken

    def want(self, key: _Key) -> None:
        """Have spares of this key, at the cost of those that were wanted longest ago."""
        if self._closed or self._size == 0:
            return
        self._recent = [key, *(known for known in self._recent if known != key)][: self._size]
        self._settled.clear()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(), name="spare containers")

    async def settled(self) -> None:
        """Wait until there are as many as there should be, or making one has failed."""
        if self._task is not None:
            await self._settled.wait()

    async def close(self) -> None:
        """Drop all. Idempotent."""
        self._closed = True
        if self._task is not None:  # it ends with the spare it is making: half of one could not be dropped
            await asyncio.wait([self._task])
        for _, spare in self._spares:
            await self._drop(spare)
        self._spares.clear()
        self._settled.set()

    async def _work(self) -> None:
        try:
            while not self._closed and (step := self._next()) is not None:
                key, surplus = step
                if surplus is not None:
                    self._spares.remove((key, surplus))
                    await self._drop(surplus)
                else:
                    self._spares.append((key, await self._make(key)))
        except DriverFailed:
            self._recent.clear()  # the next to want one meets the reason itself, cold
        finally:
            self._settled.set()

    def _next(self) -> tuple[_Key, _Spare | None] | None:
        """A spare to drop, or else a key to make one for."""
        wanted = Counter(self._recent)
        if self._recent:
            wanted[self._recent[0]] += self._size - len(self._recent)
        have: Counter[_Key] = Counter()
        for key, spare in self._spares:
            have[key] += 1
            if have[key] > wanted[key] or not spare.is_alive():
                return key, spare
        return next(((key, None) for key in self._recent if have[key] < wanted[key]), None)
