"""Waiting between attempts to reach the control plane: exponential, bounded, with jitter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from secrets import SystemRandom
from typing import Any, TypeVar

import anyio

from dataplane.client import ControlPlaneUnavailable, TokenRefused

T = TypeVar("T")

FIRST_SECONDS = 0.05
MOST_SECONDS = 5.0


class Backoff:
    """One sequence of growing waits of at most ``most_seconds``; ``reset`` after a success."""

    def __init__(self, most_seconds: float = MOST_SECONDS) -> None:
        self._most = most_seconds
        self._failures = 0
        self._random = SystemRandom()

    def reset(self) -> None:
        self._failures = 0

    def next_seconds(self) -> float:
        """Between half and the whole of ``FIRST · 2^n``, at most ``most_seconds``."""
        whole = min(self._most, FIRST_SECONDS * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return whole * self._random.uniform(0.5, 1.0)

    async def wait(self) -> None:
        await anyio.sleep(self.next_seconds())


async def insist(operation: Callable[[], Awaitable[T]], failed: Callable[[Exception, float], None] | None = None) -> T:
    """Repeat an idempotent operation until the control plane answers. The caller's scope is the bound.

    ``failed`` is told each failure and the clock's seconds then.
    """
    backoff = Backoff()
    while True:
        try:
            return await operation()
        except (ControlPlaneUnavailable, TokenRefused) as error:
            if failed is not None:
                failed(error, anyio.current_time())
            await backoff.wait()


async def unless(stopped: anyio.Event, operation: Coroutine[Any, Any, T]) -> T | None:
    """What ``operation`` returns or raises; ``None``, and the operation cancelled, once ``stopped`` is set."""
    failure: Exception | None = None
    answer: T | None = None

    async def work() -> None:
        nonlocal answer, failure
        try:
            answer = await operation
        except Exception as error:  # raised below, outside the group that would wrap it
            failure = error
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await stopped.wait()
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return answer
