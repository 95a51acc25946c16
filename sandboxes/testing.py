"""``FakeDriver``: the double that passes the conformance suite by playing configured behaviours.

Nothing is isolated and no guest code runs: a ``Play`` says what the guest of a given program would have done, within
the limits the fake then applies. For tests of what sits above a driver.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sandboxes.driver import Feature, FileInfo, ImageStatus, refuse_missing
from sandboxes.errors import DriverFailed, SandboxClosed, TierUnavailable
from sandboxes.execution import (
    Command,
    ConnectionHandler,
    Event,
    Exited,
    ExitReason,
    Progress,
    Stderr,
    Stdout,
    ToolHandler,
    no_connections,
    no_tools,
)
from sandboxes.spec import SandboxSpec, Strength, Tier

_TICK_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class Play:
    """What one program's guest does, in this order: calls, progress, output, files, ticking or hanging, its end.

    ``answered``: the result is the list of what the calls returned (an error counts as its ``type``).
    ``echoes``: what it reads it writes, as it comes, until stdin ends.
    ``hangs`` until the host ends it; ``ticks`` as well, but writes a line every 10 ms while not frozen.
    ``fails``: the platform's failure, raised instead of an end.
    """

    stdout: bytes = b""
    stderr: bytes = b""
    progress: tuple[Progress, ...] = ()
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    answered: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)
    code: int = 0
    reason: ExitReason = ExitReason.EXITED
    result: Any = None
    has_result: bool = False
    schema_error: str | None = None
    hangs: bool = False
    ticks: bool = False
    echoes: bool = False
    fails: str | None = None


def program_key(command: Command) -> str:
    """What a play is found by: the source, or the words of ``argv``."""
    return " ".join(command.argv) if command.language == "argv" else command.source


class FakeSandbox:
    """Plays one command at a time."""

    def __init__(self, spec: SandboxSpec, label: str, plays: Mapping[str, Play]) -> None:
        self.label = label
        self.commands: list[Command] = []
        self._spec, self._plays = spec, plays
        self._files: dict[str, bytes] = {}
        self._ending = asyncio.Event()
        self._running = self._closed = self._frozen = False

    async def execute(
        self, command: Command, tools: ToolHandler = no_tools, connections: ConnectionHandler = no_connections
    ) -> AsyncIterator[Event]:
        """Play ``command``. Raises ``DriverFailed`` for a program nobody configured."""
        if self._closed:
            raise SandboxClosed(f"the sandbox {self.label!r} has ended; open another")
        if self._running:
            raise DriverFailed(f"the sandbox {self.label!r} is running a command; wait for its end")
        play = self._plays.get(program_key(command))
        if play is None:
            raise DriverFailed(f"no play is configured for {program_key(command)[:200]!r}")
        if play.fails is not None:
            raise DriverFailed(play.fails)
        self.commands.append(command)
        self._running = True
        self._ending.clear()
        started = time.monotonic()
        try:
            async for event in self._perform(command, play, tools, started):
                yield event
        finally:
            self._running = False

    async def _perform(self, command: Command, play: Play, tools: ToolHandler, started: float) -> AsyncIterator[Event]:
        answers: list[Any] = []
        if play.echoes:
            async for piece in command.stdin_pieces():
                yield Stdout(data=piece)
        for tool, args in play.calls:
            answer = await tools(tool, args)
            answers.append(answer.value if answer.error is None else answer.error.get("type"))
        for progress in play.progress:
            yield progress
        left = self._spec.limits.output_bytes
        if out := play.stdout[:left]:
            yield Stdout(data=out)
        if err := play.stderr[: left - len(out)]:
            yield Stderr(data=err)
        self._files.update(play.files)
        reason = play.reason
        if play.hangs or play.ticks:
            deadline = started + self._spec.limits.wall_seconds
            while not self._ending.is_set() and time.monotonic() < deadline:
                if play.ticks and not self._frozen:
                    yield Stdout(data=b"tick\n")
                left_seconds = deadline - time.monotonic()
                await self._pause(min(_TICK_SECONDS, left_seconds) if play.ticks else left_seconds)
            reason = ExitReason.CANCELLED if self._ending.is_set() else ExitReason.TIMEOUT
        if reason is ExitReason.EXITED and sum(map(len, self._files.values())) > self._spec.limits.disk_bytes:
            reason = ExitReason.DISK
        ended = reason is ExitReason.EXITED
        json.dumps(play.result, allow_nan=False)  # a play may not promise what no tier can send
        yield Exited(
            code=play.code if ended else 137,
            reason=reason,
            signal=None if ended else 9,
            result=answers if play.answered else play.result,
            has_result=play.has_result or play.answered,
            schema_error=play.schema_error,
            output_truncated=len(play.stdout) + len(play.stderr) > left,
            wall_seconds=time.monotonic() - started,
        )

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._ending.wait(), max(0.0, seconds))
        except TimeoutError:
            return

    async def cancel(self) -> None:
        """End what plays."""
        self._ending.set()

    async def outputs(self) -> tuple[FileInfo, ...]:
        """The plays' files."""
        self._check_open()
        return tuple(FileInfo(path=path, size_bytes=len(data)) for path, data in sorted(self._files.items()))

    async def read_output(self, path: str) -> bytes:
        """One of them."""
        self._check_open()
        if path not in self._files:
            raise FileNotFoundError(path)
        return self._files[path]

    async def stream_output(self, path: str) -> AsyncIterator[bytes]:
        """The same, cut in two."""
        data = await self.read_output(path)
        half = len(data) // 2
        for piece in filter(None, (data[:half], data[half:])):
            yield piece

    async def freeze(self) -> None:
        """Hold ticking."""
        self._frozen = True

    async def thaw(self) -> None:
        """Go on ticking."""
        self._frozen = False

    async def end(self) -> None:
        """Refuse everything from here on."""
        self._closed = True
        await self.cancel()

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxClosed(f"the sandbox {self.label!r} has ended; its files are gone")


class FakeDriver:
    """``plays`` maps programs (``program_key``) to behaviours. ``unavailable`` is the probe's answer."""

    def __init__(
        self,
        plays: Mapping[str, Play] | None = None,
        *,
        tier: Tier = Tier.JAIL,
        strength: Strength = Strength.USER,
        features: frozenset[Feature] = frozenset(Feature) - {Feature.NETWORK, Feature.GPU},
        unavailable: str | None = None,
    ) -> None:
        self.tier, self.strength, self.features = tier, strength, features
        self.plays: dict[str, Play] = dict(plays or {})
        self.live: dict[str, FakeSandbox] = {}
        self._unavailable = unavailable

    async def probe(self) -> str | None:
        """What the test said."""
        return self._unavailable

    def images(self) -> tuple[ImageStatus, ...]:
        """Always ready."""
        return (ImageStatus(image="python", ready=True, fraction=1.0, detail="fake"),)

    async def prepare(self, image: str) -> None:
        """Nothing to make."""

    @asynccontextmanager
    async def open(self, spec: SandboxSpec, label: str) -> AsyncIterator[FakeSandbox]:
        """A fresh fake. Raises ``TierUnavailable`` if the test said so, ``DriverFailed`` for a label in use."""
        if self._unavailable is not None:
            raise TierUnavailable(self._unavailable)
        refuse_missing(self, spec)
        if label in self.live:
            raise DriverFailed(f"a sandbox labelled {label!r} exists already; end it or reap it first")
        sandbox = self.live[label] = FakeSandbox(spec, label, self.plays)
        try:
            yield sandbox
        finally:
            await sandbox.end()
            self.live.pop(label, None)

    async def reap(self, keep: Collection[str]) -> tuple[str, ...]:
        """End those not kept."""
        gone = sorted(label for label in self.live if label not in keep)
        for label in gone:
            await self.live.pop(label).end()
        return tuple(gone)

    async def close(self) -> None:
        """End all."""
        await self.reap(())
