"""The port every isolation tier implements.

A driver is judged by ``sandboxes.conformance``; features it lacks are declared in ``features`` and listed there with
their reason, never silently skipped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sandboxes.errors import TierUnavailable
from sandboxes.execution import Command, ConnectionHandler, Event, ToolHandler, no_connections, no_tools
from sandboxes.spec import FAKE_GPU, SandboxSpec, Strength, Tier


class Feature(StrEnum):
    """What a tier can do beyond the common contract."""

    PYTHON = "python"
    SHELL = "shell"
    ARGV = "argv"
    SUBPROCESSES = "subprocesses"
    PROC = "proc"  # has a /proc of its own
    FUEL = "fuel"
    FREEZE = "freeze"
    SCIENCE = "science"  # numpy, pandas
    SYMLINKS = "symlinks"
    FOLDER_INPUTS = "folder_inputs"  # a mount may be a folder
    STREAMED_STDIN = "streamed_stdin"  # stdin may be fed while the guest runs
    NETWORK = "network"  # a proxy inside that the host serves, if the spec asks for it
    GPU = "gpu"  # hands the host's devices in


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One regular file the guest left below ``/outputs`` (``path`` is relative, no ``..``, never a link)."""

    path: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class ImageStatus:
    """``ready`` or being prepared (``fraction`` 0..1, ``detail``), for ``doctor`` and for placement."""

    image: str
    ready: bool
    fraction: float
    detail: str


class Sandbox(Protocol):
    """A live sandbox. One command at a time."""

    label: str

    def execute(
        self, command: Command, tools: ToolHandler = no_tools, connections: ConnectionHandler = no_connections
    ) -> AsyncIterator[Event]:
        """Run to the end; the last event is the only ``Exited``. Closing the iterator early kills the guest.

        ``connections`` serves what the guest connects to its proxy, if the sandbox was opened with ``network``.
        """
        ...

    async def cancel(self) -> None:
        """End the running command within 1 s, also when the guest sleeps in a system call. ``Exited(CANCELLED)``."""
        ...

    async def outputs(self) -> tuple[FileInfo, ...]:
        """Regular files below ``/outputs``, sorted by path; links and specials are left out.

        After ``exited`` their sizes are together at most ``Limits.disk_bytes``. Holes of sparse files count, and a
        file counts under each of its names: a guest that leaves more ends with ``disk``.
        """
        ...

    async def read_output(self, path: str) -> bytes:
        """Bytes of one of ``outputs()``. Symlink-safe. ``FileNotFoundError`` if it is not one of them."""
        ...

    def stream_output(self, path: str) -> AsyncIterator[bytes]:
        """The same in pieces of at most 1 MiB: nobody else may hold a whole file in memory for a guest's sake."""
        ...

    async def freeze(self) -> None:
        """Stop the guest's progress until ``thaw``. Idempotent. Wall time goes on counting."""
        ...

    async def thaw(self) -> None:
        """Let it go on. Idempotent."""
        ...


class Driver(Protocol):
    """One tier on this host."""

    tier: Tier
    features: frozenset[Feature]
    strength: Strength

    async def probe(self) -> str | None:
        """``None`` if a guest really ran here; else the reason, with the fix, in one sentence."""
        ...

    def images(self) -> tuple[ImageStatus, ...]:
        """What can be opened here."""
        ...

    async def prepare(self, image: str) -> None:
        """Make an image ready (compile ahead of time). Idempotent; progress shows in ``images()``."""
        ...

    def open(self, spec: SandboxSpec, label: str) -> AbstractAsyncContextManager[Sandbox]:
        """A fresh sandbox that is destroyed on exit, whatever happened. Raises ``DriverFailed``."""
        ...

    async def reap(self, keep: Collection[str]) -> tuple[str, ...]:
        """Destroy every sandbox of this driver on this host, also of a dead process, whose label is not in ``keep``.

        Raises ``DriverFailed`` naming what could not be removed, when all the rest is gone.
        """
        ...

    async def close(self) -> None:
        """End pools and workers. Idempotent."""
        ...


def refuse_missing(driver: Driver, spec: SandboxSpec) -> None:
    """A sandbox is what it was asked to be or is not at all. Raises ``TierUnavailable`` with what to do instead."""
    if spec.network and Feature.NETWORK not in driver.features:
        raise TierUnavailable(
            f"the tier {driver.tier} has no sockets, so no network can be granted to it; use jail or container"
        )
    if Feature.GPU not in driver.features and not all(gpu.startswith(FAKE_GPU) for gpu in spec.gpus):
        raise TierUnavailable(f"the tier {driver.tier} hands no GPU to its guests; use container")
