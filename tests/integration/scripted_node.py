"""A node whose driver runs scripts of this file, and what it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web

from dataplane.config import NodeConfig
from dataplane.daemon import NodeDaemon
from dataplane.protocol import (
    Assignment,
    BuiltinCall,
    CodeWork,
    Performance,
    SandboxRequest,
)
from dataplane.testing import ControlPlaneDouble
from sandboxes.driver import Feature, FileInfo, ImageStatus
from sandboxes.errors import DriverFailed
from sandboxes.execution import (
    Command,
    ConnectionHandler,
    Event,
    Exited,
    ExitReason,
    Stderr,
    Stdout,
    ToolHandler,
    no_connections,
    no_tools,
)
from sandboxes.spec import SandboxSpec, Strength, Tier


class ScriptedSandbox:
    def __init__(self, driver: ScriptedDriver, spec: SandboxSpec, label: str) -> None:
        self.label = label
        self.frozen = False
        self.ended_by = ExitReason.CANCELLED
        self._driver = driver
        self._spec = spec
        self._cancelled = anyio.Event()

    async def execute(
        self, command: Command, tools: ToolHandler = no_tools, connections: ConnectionHandler = no_connections
    ) -> AsyncIterator[Event]:
        verb, _, rest = command.source.partition(" ")
        self._driver.started.set()
        if verb == "print":
            yield Stdout(data=rest.encode())
            yield Stderr(data=b"warned")
            yield Exited(code=0, reason=ExitReason.EXITED, result=rest, has_result=True)
        elif verb == "call":
            answer = await tools(rest, {"q": 1})
            yield Exited(
                code=0, reason=ExitReason.EXITED, result={"value": answer.value, "error": answer.error}, has_result=True
            )
        elif verb == "read":
            text = {mount.name: mount.source.read_text() for mount in self._spec.mounts}
            yield Exited(code=0, reason=ExitReason.EXITED, result=text, has_result=True)
        elif verb == "break":
            raise DriverFailed("no memory cgroup here")
        else:
            await self._cancelled.wait()
            yield Exited(code=-1, reason=self.ended_by)

    async def cancel(self) -> None:
        self._cancelled.set()

    async def outputs(self) -> tuple[FileInfo, ...]:
        return tuple(FileInfo(path=name, size_bytes=len(data)) for name, data in sorted(self._driver.files.items()))

    async def read_output(self, path: str) -> bytes:
        return self._driver.files[path]

    async def stream_output(self, path: str) -> AsyncIterator[bytes]:
        yield self._driver.files[path]

    async def freeze(self) -> None:
        self.frozen = True
        self._driver.changed()

    async def thaw(self) -> None:
        self.frozen = False
        self._driver.changed()


class ScriptedDriver:
    tier = Tier.WASM
    features = frozenset({Feature.PYTHON, Feature.FREEZE})
    strength = Strength.USER

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.live: dict[str, ScriptedSandbox] = {}
        self.started = anyio.Event()
        self.specs: list[SandboxSpec] = []
        self._change = anyio.Event()

    def changed(self) -> None:
        self._change.set()
        self._change = anyio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(10):
            while not condition():
                await self._change.wait()

    async def probe(self) -> str | None:
        return None

    def images(self) -> tuple[ImageStatus, ...]:
        return (ImageStatus(image="python", ready=True, fraction=1.0, detail=""),)

    async def prepare(self, image: str) -> None:
        return None

    @asynccontextmanager
    async def open(self, spec: SandboxSpec, label: str) -> AsyncIterator[ScriptedSandbox]:
        self.specs.append(spec)
        self.live[label] = sandbox = ScriptedSandbox(self, spec, label)
        try:
            yield sandbox
        finally:
            del self.live[label]
            self.changed()

    async def reap(self, keep: Collection[str]) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        return None


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def node(
    double: ControlPlaneDouble, folder: Path, driver: ScriptedDriver | None = None, **more: Any
) -> AsyncIterator[NodeDaemon]:
    drivers = {Tier.WASM: driver} if driver else {}
    lease = more.pop("lease", None)
    config = NodeConfig(url=double.url, state_dir=folder / "state", join_token="join", name="n", **more)
    daemon = NodeDaemon(config, drivers, {Tier.JAIL: "no bubblewrap"}, lease=lease)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(daemon.run)
        await double.until(lambda: bool(double.heartbeats))
        yield daemon
        daemon.stop()


def code(attempt: str, source: str, *, fence: int = 1, **more: Any) -> Assignment:
    work = CodeWork(
        language="python",
        source=source,
        sandbox=SandboxRequest(tier="wasm", image="python", memory_bytes=2**28, wall_seconds=20),
        **more,
    )
    return Assignment(attempt=attempt, fence=fence, run="r", path="p", number=1, wall_seconds=30, code=work)


def call(attempt: str, work: Performance, *, fence: int = 1) -> Assignment:
    return Assignment(attempt=attempt, fence=fence, run="r", path="p", number=1, wall_seconds=30, call=work)


def noop(attempt: str, **args: Any) -> Assignment:
    return call(attempt, Performance(key="k", builtin=BuiltinCall(name="noop", args=args)))


@asynccontextmanager
async def service(handler: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
