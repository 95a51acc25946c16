"""The stdio servers of a node: at most one process for each, started by its first call, ended when nobody calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from dataplane.data_roots import DataRefused, DataRoots
from dataplane.mcp.conversation import Conversation
from dataplane.mcp.failures import McpFailed
from dataplane.mcp.process import OUTPUT_BYTES, WALL_SECONDS, StdioServer
from dataplane.protocol import McpProcess
from sandboxes.driver import Driver, Feature
from sandboxes.spec import MIB, Limits, Mount, SandboxSpec, Tier

T = TypeVar("T")
IDLE_SECONDS = 300.0
SERVERS_MOST = 16
_LOOK_SECONDS = 5.0
_NEEDED = frozenset({Feature.ARGV, Feature.STREAMED_STDIN, Feature.FOLDER_INPUTS})


class StdioServers:
    """``serve`` owns every process; they end with it."""

    def __init__(self, drivers: Mapping[Tier, Driver], roots: DataRoots, idle_seconds: float = IDLE_SECONDS) -> None:
        self._drivers, self._roots, self._idle_seconds = drivers, roots, idle_seconds
        self._current: dict[str, StdioServer] = {}
        self._all: set[StdioServer] = set()
        self._starting = anyio.Lock()
        self._numbers = count(1)
        self._tasks: anyio.abc.TaskGroup | None = None
        self.ended = anyio.Event()
        """Set each time that no process is left."""

    async def serve(self) -> None:
        """End idle and retired processes, for ever."""
        async with anyio.create_task_group() as self._tasks:
            while True:
                await anyio.sleep(min(_LOOK_SECONDS, self._idle_seconds))
                now = anyio.current_time()
                for server in list(self._all):
                    if not server.calls and (server.retired or now - server.idle_since >= self._idle_seconds):
                        server.stop(McpFailed("mcp_exited", "the server was idle and is ended", retryable=True))

    async def perform(
        self, server_id: str, process: McpProcess, act: Callable[[Conversation], Awaitable[T]], seconds: float
    ) -> T:
        """``act`` with the server's conversation. Raises ``McpFailed``."""
        async with self._starting:
            server = self._current.get(server_id)
            if server is None or server.retired:
                server = self._current[server_id] = await self._start(server_id, process)
        return await server.perform(act, seconds)

    async def _start(self, server_id: str, process: McpProcess) -> StdioServer:
        if self._tasks is None:
            raise McpFailed("mcp_unavailable", "the node is starting or ending", retryable=True)
        driver = self._driver(process.tier)
        mounts = await anyio.to_thread.run_sync(self._mounts, process)
        if len(self._all) >= SERVERS_MOST:
            self._make_room()
        limits = Limits(
            memory_bytes=process.memory_bytes,
            wall_seconds=WALL_SECONDS,
            output_bytes=OUTPUT_BYTES,
            disk_bytes=64 * MIB,
            file_bytes=32 * MIB,
            inodes=4096,
        )
        spec = SandboxSpec(tier=driver.tier, image=process.image, limits=limits, mounts=mounts)
        label = f"mcp-{server_id.removeprefix('sha256:')[:16]}-{next(self._numbers)}"
        server = StdioServer(driver, spec, label, process.command, process.env)
        self._all.add(server)
        self.ended = anyio.Event()
        self._tasks.start_soon(self._run, server_id, server)
        return server

    async def _run(self, server_id: str, server: StdioServer) -> None:
        try:
            await server.run()
        finally:
            self._all.discard(server)
            if not self._all:
                self.ended.set()
            if self._current.get(server_id) is server:
                del self._current[server_id]

    def _make_room(self) -> None:
        idle = [one for one in self._all if not one.calls]
        if not idle:
            raise McpFailed("mcp_busy", f"this node runs {SERVERS_MOST} MCP servers, all of them busy", retryable=True)
        oldest = min(idle, key=lambda one: one.idle_since)
        oldest.stop(McpFailed("mcp_exited", "the server was ended for another", retryable=True))

    def _driver(self, tier: str) -> Driver:
        driver = next((driver for name, driver in self._drivers.items() if name == tier), None)
        if driver is None:
            why = f"this node has no tier {tier!r}; it has {', '.join(sorted(self._drivers)) or 'none'}"
            raise McpFailed("mcp_unavailable", why)
        if missing := _NEEDED - driver.features:
            lacks = ", ".join(sorted(missing))
            raise McpFailed("mcp_unavailable", f"the tier {tier} cannot hold a server ({lacks}); use jail or container")
        return driver

    def _mounts(self, process: McpProcess) -> tuple[Mount, ...]:
        try:
            return tuple(Mount(name=name, source=self._roots.folder(root)) for name, root in process.mounts.items())
        except DataRefused as refused:
            why = f"{refused}; a call from code runs on the code's own node: put the step `near` that data"
            raise McpFailed("mcp_unavailable", why) from refused
