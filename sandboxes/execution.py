"""What a sandbox is told to run, and what comes back: a stream that ends in exactly one ``Exited``."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Command:
    """One program.

    ``language`` decides what ``source`` is: Python text, shell text, or (``argv``) nothing, with ``argv`` set.
    ``call`` names a function in Python source that is called with ``args`` (JSON values); its return is the result.
    ``inputs`` are the names mounted, for the guest module.

    ``stdin`` that is not bytes is fed piece by piece as it comes, no faster than the guest reads, and then closed: a
    conversation. It needs ``Feature.STREAMED_STDIN``.
    """

    language: Literal["python", "shell", "argv"]
    source: str = ""
    argv: tuple[str, ...] = ()
    call: str | None = None
    args: Sequence[Any] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes | AsyncIterable[bytes] = b""

    async def stdin_pieces(self) -> AsyncIterator[bytes]:
        """What the guest is to read, in order."""
        if isinstance(self.stdin, bytes):
            if self.stdin:
                yield self.stdin
            return
        async for piece in self.stdin:
            yield piece


class ExitReason(StrEnum):
    """Why a guest ended, judged from the host, never from text the guest wrote."""

    EXITED = "exited"  # of its own accord; ``code`` is its own
    TIMEOUT = "timeout"  # wall time over
    OOM = "oom"  # memory limit
    FUEL = "fuel"  # deterministic instruction limit
    DISK = "disk"  # disk bytes, inodes or file size, where the tier kills for it
    CANCELLED = "cancelled"  # the host asked
    KILLED = "killed"  # a signal or a trap not of the host's doing (``signal``, ``message``)


@dataclass(frozen=True, kw_only=True)
class Stdout:
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Stderr:
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the guest said through ``stockade_tools.progress``. Hostile text."""

    fraction: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Exited:
    """The end. ``result`` is the strict-JSON value sent over the frame channel (``has_result`` says if any).

    Order of the result: the return of ``call``, else ``/outputs/output.json``, else the last expression (Python
    only), else absent. A result that is not strict JSON or is above 16 MiB gives ``schema_error`` and no result.
    ``output_truncated``: bytes past ``Limits.output_bytes`` were read and thrown away.
    """

    code: int
    reason: ExitReason
    signal: int | None = None
    message: str = ""
    result: Any = None
    has_result: bool = False
    schema_error: str | None = None
    output_truncated: bool = False
    wall_seconds: float = 0.0
    memory_peak_bytes: int | None = None


Event = Stdout | Stderr | Progress | Exited


@dataclass(frozen=True, kw_only=True)
class ToolAnswer:
    """What the guest's call returns: ``value`` (JSON), or ``error`` with a stable ``type`` and a remedy."""

    value: Any = None
    error: Mapping[str, Any] | None = None


ToolHandler = Callable[[str, Mapping[str, Any]], Awaitable[ToolAnswer]]
"""``handler(tool, args)``: the channel is the sandbox's own, so the host knows which attempt is calling."""


ConnectionHandler = Callable[[socket.socket], Awaitable[None]]
"""``handler(connection)``: one connection the guest made to its proxy. It does not block; the caller closes it.

The listening socket is the sandbox's own, so the host knows whose it is. Cancelled when the command ends.
"""


async def no_connections(connection: socket.socket) -> None:
    """The handler of a sandbox that was granted no network: the guest sees its connection closed."""


async def no_tools(tool: str, args: Mapping[str, Any]) -> ToolAnswer:
    """The handler of a sandbox that was granted nothing."""
    return ToolAnswer(error={"type": "policy_denied", "message": f"tool {tool!r} was not granted to this step"})
