"""One stdio MCP server: a process in a sandbox of its own, and the one conversation with it.

    run ── sandbox.execute ─> events ─> LineSplitter ─> Guard ─> inbox ─> MCP client ─> Conversation <── perform
                   └─ stdin <── outbox <── GuardedWriter <────────────────────┘

``perform`` may be called from any task. Whatever ends the server is kept in ``failure``, and every call sees it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TypeVar

import anyio
import anyio.abc
import structlog
from mcp.shared.message import SessionMessage

from dataplane.mcp.conversation import START_SECONDS, Conversation, Streams, connected, meaning
from dataplane.mcp.failures import McpFailed
from dataplane.mcp.guard import UNREAD_MOST, Guard, GuardedWriter, Heard, LineSplitter, parse
from dataplane.sendable import plain
from sandboxes.driver import Driver
from sandboxes.errors import DriverFailed
from sandboxes.execution import Command, Exited, ExitReason, Stderr, Stdout
from sandboxes.spec import MIB, SandboxSpec

log = structlog.get_logger("stockade.node")
T = TypeVar("T")
RETIRE_BYTES = 32 * MIB
"""A process that has said so much takes no new call; the next call starts another."""
OUTPUT_BYTES = 80 * MIB
"""What it may say in all: beyond ``RETIRE_BYTES`` there is room for the answers to the calls it still serves."""
RETIRE_SECONDS = 3600.0
WALL_SECONDS = RETIRE_SECONDS + 900.0
AT_ONCE = 8
_STDERR_TAIL = 2048
_END_SECONDS = 2.0


class _Streams:
    """What the MCP client connects to: it closes them, and nothing else happens then."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def __aenter__(self) -> Streams:
        return self._streams

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams:
            await stream.aclose()


class StdioServer:
    """``run`` once, in a task of its own; it returns when the server is gone, and raises for nothing the server did."""

    def __init__(self, driver: Driver, spec: SandboxSpec, label: str, command: list[str], env: dict[str, str]) -> None:
        self.label = label
        self.failure: McpFailed | None = None
        self.calls = 0
        self.idle_since = self.started = anyio.current_time()
        self.said_bytes = 0
        self._driver, self._spec, self._command, self._env = driver, spec, command, env
        self._guard = Guard()
        self._ready, self._over = anyio.Event(), anyio.Event()
        self._slots = anyio.Semaphore(AT_ONCE)
        self._conversation: Conversation | None = None
        self._writer: GuardedWriter | None = None
        self._stderr = b""

    @property
    def retired(self) -> bool:
        """Whether it should get no new call."""
        old = anyio.current_time() - self.started > RETIRE_SECONDS
        return self._over.is_set() or old or self.said_bytes > RETIRE_BYTES

    def stop(self, failure: McpFailed) -> None:
        """End it; the first reason counts."""
        self.failure = self.failure or failure
        self._over.set()
        self._ready.set()

    async def run(self) -> None:
        """Start it and serve until it ends or is stopped."""
        try:
            async with self._driver.open(self._spec, self.label) as sandbox, anyio.create_task_group() as tasks:
                said, heard = anyio.create_memory_object_stream[Heard](UNREAD_MOST)
                told, tells = anyio.create_memory_object_stream[SessionMessage](UNREAD_MOST)
                with said, heard, told, tells:
                    self._writer = GuardedWriter(told, self._guard)
                    command = Command(language="argv", argv=tuple(self._command), env=self._env, stdin=_lines(tells))
                    tasks.start_soon(self._listen, sandbox.execute(command), said)
                    await self._converse(_Streams((heard, self._writer)))
                    tasks.cancel_scope.cancel()
        except (DriverFailed, OSError) as error:
            self.stop(McpFailed("mcp_unavailable", f"the server could not be started: {error}", retryable=True))
        except Exception as error:  # a defect of ours or of a library: it ends this server and no other
            log.exception("an MCP server's conversation broke", server=self.label)
            self.stop(McpFailed("mcp_unavailable", f"the node broke off with {type(error).__name__}; see its log"))
        finally:
            self.stop(McpFailed("mcp_exited", "the server was ended", retryable=True))
            log.info("MCP server ended", server=self.label, why=str(self.failure), stderr=self.stderr_tail())

    async def _converse(self, streams: _Streams) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._greet, streams)
            await self._over.wait()
            tasks.cancel_scope.cancel()

    async def _greet(self, streams: _Streams) -> None:
        try:
            with anyio.fail_after(START_SECONDS) as patience:
                async with connected(streams) as self._conversation:
                    patience.deadline = float("inf")
                    self._ready.set()
                    await self._over.wait()
        except TimeoutError:
            self.stop(McpFailed("mcp_timeout", f"the server did not start to speak MCP within {START_SECONDS:g} s"))
        except Exception as error:
            failure = meaning(error)
            if failure is None:
                raise
            if failure.reason == "mcp_exited":
                await self._settled()
            self.stop(failure)

    async def _listen(self, events: AsyncIterator[object], said: anyio.abc.ObjectSendStream[Heard]) -> None:
        splitter = LineSplitter()
        try:
            async for event in events:
                if isinstance(event, Stdout):
                    self.said_bytes += len(event.data)
                    for line in splitter.feed(event.data):
                        message = parse(line)
                        if self._guard.admit(message, len(line)):
                            await said.send(SessionMessage(message))
                elif isinstance(event, Stderr):
                    self.said_bytes += len(event.data)
                    self._stderr = (self._stderr + event.data[-_STDERR_TAIL:])[-_STDERR_TAIL:]
                elif isinstance(event, Exited):
                    self.stop(self._ended(event, splitter))
        except McpFailed as failure:
            self.stop(failure)
        except DriverFailed as error:
            self.stop(McpFailed("mcp_unavailable", f"the server's sandbox failed: {error}", retryable=True))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._over.wait()  # the client has let go; why is on its way
        finally:
            if isinstance(events, AsyncGenerator):  # closing it kills the server
                await events.aclose()

    def _ended(self, event: Exited, splitter: LineSplitter) -> McpFailed:
        how = {
            ExitReason.EXITED: f"with exit code {event.code}",
            ExitReason.OOM: "out of memory; raise the server's memory",
        }.get(event.reason, f"by {event.reason}")
        mid = ", in the middle of a message" if splitter.in_mid_message else ""
        said = f"; its stderr ends: {self.stderr_tail()[-400:]}" if self._stderr.strip() else ""
        return McpFailed("mcp_exited", f"the server ended {how}{mid}{said}", retryable=True)

    def stderr_tail(self) -> str:
        """What it last wrote on stderr: hostile text."""
        return plain(self._stderr.decode(errors="replace")).strip()

    async def _settled(self) -> None:
        """What the client knows only as a closed connection has a better reason, which is on its way."""
        with anyio.move_on_after(_END_SECONDS):
            await self._over.wait()

    async def perform(self, act: Callable[[Conversation], Awaitable[T]], seconds: float) -> T:
        """``act`` within ``seconds``, a first start not counted. Raises ``McpFailed``."""
        self.calls += 1
        try:
            await self._ready.wait()  # bounded by START_SECONDS in ``_greet``, and by what starts a sandbox
            answers = self._guard.answers
            try:
                with anyio.fail_after(seconds):
                    async with self._slots:
                        return await self._act(act)
            except TimeoutError:
                failure = McpFailed("mcp_timeout", f"the server did not answer within {seconds:g} s", retryable=True)
                if self._guard.answers == answers:  # it answers nobody
                    self.stop(failure)
                raise failure from None
        finally:
            self.calls -= 1
            self.idle_since = anyio.current_time()

    async def _act(self, act: Callable[[Conversation], Awaitable[T]]) -> T:
        if self.failure is not None or self._conversation is None:
            raise self.failure or McpFailed("mcp_exited", "the server was ended", retryable=True)
        try:
            return await act(self._conversation)
        except McpFailed as failure:
            if failure.reason == "mcp_timeout":
                raise TimeoutError from None
            if self._writer is not None and self._writer.deaf:
                self.stop(McpFailed("mcp_deaf", "the server does not read what it is told", retryable=True))
            if failure.reason != "mcp_exited":
                raise
            await self._settled()
            raise (self.failure or failure) from None


async def _lines(messages: anyio.abc.ObjectReceiveStream[SessionMessage]) -> AsyncIterator[bytes]:
    async for message in messages:
        yield message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
