"""What the node holds: one entry for each attempt that runs here, and what it takes of the node."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import anyio

from dataplane.protocol import Assignment, Capacity
from sandboxes.driver import Sandbox

Ending = Literal["cancelled", "lost", "frozen"]
CANCEL_SECONDS = 1.0


class Attempt:
    """One live attempt. ``ending`` is set once, by whoever ends it from outside, and decides what is reported."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.scope = anyio.CancelScope()
        self.sandbox: Sandbox | None = None
        self.ending: Ending | None = None
        self.why = ""
        self.done = anyio.Event()
        self.phase: Literal["fetching", "running", "uploading"] = "fetching"
        self.was_frozen = False
        self._frozen = False

    @property
    def key(self) -> tuple[str, int]:
        return (self.assignment.attempt, self.assignment.fence)

    async def end(self, ending: Ending, why: str) -> None:
        """End it: ask the sandbox, and after ``CANCEL_SECONDS`` take everything away. Idempotent."""
        if self.ending is not None or self.done.is_set():
            return
        self.ending, self.why = ending, why
        with anyio.move_on_after(CANCEL_SECONDS):
            if self.sandbox is None:
                self.scope.cancel()
            else:
                await self.sandbox.cancel()
            await self.done.wait()
        self.scope.cancel()

    async def freeze(self) -> None:
        if self.sandbox is not None and not self._frozen:
            self._frozen = self.was_frozen = True
            await self.sandbox.freeze()

    async def thaw(self) -> None:
        if self.sandbox is not None and self._frozen:
            self._frozen = False
            await self.sandbox.thaw()


def free(total: Capacity, attempts: Collection[Attempt]) -> Capacity:
    """What is left of ``total``; a tool call takes a slot only."""
    cpu, memory = total.cpu_milli, total.memory_bytes
    for attempt in attempts:
        if attempt.assignment.code is not None:
            cpu -= attempt.assignment.code.sandbox.cpu_milli
            memory -= attempt.assignment.code.sandbox.memory_bytes
    return Capacity(
        cpu_milli=max(0, cpu),
        memory_bytes=max(0, memory),
        slots=max(0, total.slots - len(attempts)),
        gpu=total.gpu,
        gpu_memory_bytes=total.gpu_memory_bytes,
    )
