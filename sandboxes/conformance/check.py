"""What a check is, and the bench it runs on."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sandboxes.driver import Driver, Feature, Sandbox
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
from sandboxes.spec import MIB, Limits, Mount, SandboxSpec
from sandboxes.testing import Play

WALL_SECONDS = 30.0
LIMITS = Limits(memory_bytes=256 * MIB, wall_seconds=WALL_SECONDS, disk_bytes=64 * MIB, file_bytes=32 * MIB, inodes=500)


class Nonconforming(AssertionError):
    """The driver broke a promise."""


def expect(condition: bool, said: object) -> None:
    """Raise ``Nonconforming`` with what was seen unless ``condition``."""
    if not condition:
        raise Nonconforming(f"{said!r:.2000}")


@dataclass(frozen=True, kw_only=True)
class Program:
    """A guest program, and what a fake plays for it."""

    command: Command
    play: Play


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything one command said."""

    stdout: bytes
    stderr: bytes
    progress: tuple[Progress, ...]
    end: Exited


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise of the port. ``verify`` raises ``Nonconforming`` (or anything else) if it does not hold."""

    name: str
    programs: tuple[Program, ...]
    verify: Callable[[Bench], Awaitable[None]]
    needs: frozenset[Feature] = frozenset({Feature.PYTHON})
    limits: Limits = LIMITS
    inputs: Mapping[str, bytes] = field(default_factory=dict)
    folders: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Inputs that are folders: relative paths and their bytes."""
    network: bool = False


class Bench:
    """Opens sandboxes for one check and collects what they say."""

    def __init__(self, driver: Driver, check: Check) -> None:
        self.driver, self.check = driver, check
        self._folder = Path()

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="stockade-conformance-"))
        self._folder.chmod(0o755)
        for name, data in self.check.inputs.items():
            self.input_path(name).write_bytes(data)
        for name, files in self.check.folders.items():
            for path, data in files.items():
                place = self.input_path(name) / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder)

    def input_path(self, name: str) -> Path:
        """The host's file behind an input."""
        return self._folder / name

    def open(self, label: str | None = None) -> AbstractAsyncContextManager[Sandbox]:
        """A sandbox with the check's limits and inputs."""
        names = (*self.check.inputs, *self.check.folders)
        mounts = tuple(Mount(name=name, source=self.input_path(name)) for name in names)
        spec = SandboxSpec(tier=self.driver.tier, limits=self.check.limits, mounts=mounts, network=self.check.network)
        return self.driver.open(spec, label or f"conformance-{secrets.token_hex(6)}")

    def command(self, index: int = 0, args: Collection[Any] = ()) -> Command:
        """The check's program, with ``args`` only known now."""
        command = self.check.programs[index].command
        return dataclasses.replace(command, args=tuple(args)) if args else command

    async def run(
        self,
        sandbox: Sandbox,
        index: int = 0,
        args: Collection[Any] = (),
        tools: ToolHandler = no_tools,
        connections: ConnectionHandler = no_connections,
    ) -> Outcome:
        """Run one of the check's programs to its end."""
        return await collect(sandbox.execute(self.command(index, args), tools, connections))

    async def once(self, index: int = 0, args: Collection[Any] = (), tools: ToolHandler = no_tools) -> Outcome:
        """The same in a sandbox of its own."""
        async with self.open() as sandbox:
            return await self.run(sandbox, index, args, tools)


async def collect(events: AsyncIterator[Event]) -> Outcome:
    """Read to the end, which must be the only ``Exited``."""
    stdout, stderr, progress = bytearray(), bytearray(), []
    end: Exited | None = None
    async for event in events:
        expect(end is None, f"an event after the end: {event!r:.200}")
        if isinstance(event, Stdout):
            stdout += event.data
        elif isinstance(event, Stderr):
            stderr += event.data
        elif isinstance(event, Progress):
            progress.append(event)
        else:
            end = event
    if end is None:
        raise Nonconforming("the stream ended without Exited")
    return Outcome(stdout=bytes(stdout), stderr=bytes(stderr), progress=tuple(progress), end=end)


async def until(events: AsyncIterator[Event], text: bytes) -> bytes:
    """Read until stdout has ``text``; what stdout said so far."""
    seen = bytearray()
    async for event in events:
        if isinstance(event, Stdout):
            seen += event.data
            if text in seen:
                return bytes(seen)
        expect(not isinstance(event, Exited), event)
    raise Nonconforming(f"never said {text!r}")


def python(source: str, play: Play, call: str | None = None, **more: Any) -> tuple[Program, ...]:
    """One Python program."""
    return (Program(command=Command(language="python", source=source, call=call, **more), play=play),)


def shell(source: str, play: Play, **more: Any) -> tuple[Program, ...]:
    """One shell program."""
    return (Program(command=Command(language="shell", source=source, **more), play=play),)


def after(judge: Callable[[Outcome], object]) -> Callable[[Bench], Awaitable[None]]:
    """Verify one run in one sandbox: ``judge`` gives truth if the promise held."""

    async def verify(bench: Bench) -> None:
        outcome = await bench.once()
        expect(bool(judge(outcome)), outcome)

    return verify


def ended(outcome: Outcome, code: int = 0) -> bool:
    """It ended of its own accord with ``code``."""
    return outcome.end.reason is ExitReason.EXITED and outcome.end.code == code


def returns(value: Any) -> Callable[[Bench], Awaitable[None]]:
    """Verify that the result is ``value``."""
    return after(lambda outcome: ended(outcome) and outcome.end.has_result and outcome.end.result == value)
