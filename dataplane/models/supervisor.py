"""All model servers of this node: what the control plane wants, made so; what an earlier daemon left, adopted or ended.

A daemon that is killed leaves its servers serving. The next one adopts those it would start alike and keeps them until
the control plane has said what is wanted; the rest it ends, with every process that bears their mark. A daemon that is
told to stop ends them all. Under ``stockade up`` they have a lifeline besides: they end when that process does.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from dataplane.client import ControlPlane, ControlPlaneUnavailable, RequestRefused, TokenRefused
from dataplane.model_wire import (
    LOG_TAIL_BYTES,
    DesiredModels,
    EngineState,
    ModelFile,
    ModelLog,
    ModelReplica,
    ModelReport,
    ModelState,
    NodeEngine,
)
from dataplane.models.asking import Asking
from dataplane.models.process import ServerProcess, read_record, remove_scratch, sweep
from dataplane.models.replica import DRAIN_SECONDS, ReplicaServer
from dataplane.models.server import ModelServer

REFRESH_SECONDS = 30.0
CLOSE_SECONDS = 15.0
"""More than a server that does not want to end is given: asked, then killed."""
FILES_MOST = 500
REPLICAS_MOST = 64
_REPLICA = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
log = structlog.get_logger("stockade.node.models")


class ModelSupervisor:
    """``adopt``, then ``serve`` until cancelled, then ``close``. ``told`` is called when there is news to report."""

    def __init__(
        self, folder: Path, models: Path | None, engines: Mapping[NodeEngine, ModelServer], lifeline: int = 0
    ) -> None:
        self._folder = folder.absolute()
        self._models = models or self._folder / "none"
        self._engines = engines
        self._lifeline = lifeline
        self._asking = Asking()
        self._servers: dict[str, ReplicaServer] = {}
        self._refused: dict[str, ModelState] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._states: list[EngineState] = []
        self._files: list[ModelFile] = []
        self._reported: tuple[list[EngineState], list[ModelFile]] | None = None
        self._idle = anyio.Event()
        self.revision = ""
        self.told: Callable[[], None] = lambda: None

    # --- life

    async def adopt(self) -> None:
        """Look at what an earlier daemon left. Call it before anything is wanted."""
        await anyio.to_thread.run_sync(self._adopt)
        await self._look()

    async def serve(self) -> None:
        """Keep every server as it is wanted, until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for replica, server in self._servers.items():
                tasks.start_soon(self._run, replica, server)
            while True:
                await anyio.sleep(REFRESH_SECONDS)
                await self._look()

    async def drain(self) -> None:
        """End every server once it has nothing to do; returns when all are gone. The caller bounds it."""
        for server in self._servers.values():
            server.want(None)
        while self._servers:
            self._idle = anyio.Event()
            await self._idle.wait()

    async def close(self) -> None:
        """End every server now, bounded, also where the caller is cancelled. ``serve`` has ended before."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_SECONDS):
            async with anyio.create_task_group() as tasks:
                for server in self._servers.values():
                    tasks.start_soon(_end, server)
            for replica in list(self._servers):
                await anyio.to_thread.run_sync(self._forget, replica)
        with anyio.CancelScope(shield=True), anyio.move_on_after(1):
            await self._asking.close()

    # --- wishes

    def want(self, desired: DesiredModels) -> None:
        """Make it so: start what is new, change what is wanted otherwise, drain and end what is not wanted."""
        wanted = {one.replica: one for one in desired.replicas[:REPLICAS_MOST]}
        self._refused.clear()
        for replica, server in self._servers.items():
            if replica not in wanted:
                server.want(None, DRAIN_SECONDS)
        for replica, one in wanted.items():
            if replica in self._servers:
                self._servers[replica].want(one)
            elif not _REPLICA.fullmatch(replica) or one.engine not in self._engines:
                self._refused[replica] = ModelState(
                    replica=replica, deployment=one.deployment, spec=one.spec, state="failed",
                    detail="this node does not know its engine",
                )  # fmt: skip
            else:
                self._begin(one)
        self.revision = desired.revision
        self.told()

    # --- what is told

    def report(self) -> ModelReport:
        """For a heartbeat; what does not change often is told once."""
        states = [*(server.state() for server in self._servers.values()), *self._refused.values()]
        report = ModelReport(revision=self.revision, states=states)
        if self._reported != (self._states, self._files):
            report.engines, report.files = self._states, self._files
        return report

    def heard(self, report: ModelReport) -> None:
        """A report was acknowledged."""
        if report.engines is not None and report.files is not None:
            self._reported = report.engines, report.files

    def tell_all(self) -> None:
        """The node registers (again): the next report has everything, and what is wanted is heard anew."""
        self._reported, self.revision = None, ""

    def endpoint(self, replica: str) -> tuple[str, int] | None:
        """Where a replica answers on this machine; ``None`` while it is not to be asked."""
        server = self._servers.get(replica)
        return None if server is None else server.address

    async def log_tail(self, replica: str, most_bytes: int = LOG_TAIL_BYTES) -> ModelLog | None:
        """The end of what a replica's server wrote; ``None`` where there is no such replica."""
        server = self._servers.get(replica)
        if server is None:
            return None
        offset, data = await anyio.to_thread.run_sync(server.log.tail, most_bytes)
        return ModelLog(replica=replica, offset=offset, data=data)

    async def send_log(self, replica: str, control_plane: ControlPlane) -> None:
        """What the control plane asked for; it asks again where that is lost."""
        found = await self.log_tail(replica)
        try:
            if found is not None:
                await control_plane.model_logs([found])
        except (ControlPlaneUnavailable, RequestRefused, TokenRefused) as error:
            log.warning("the log of a model server was not sent", replica=replica, error=str(error)[:300])

    # --- inside

    def _begin(self, wanted: ModelReplica) -> None:
        server = self._servers[wanted.replica] = self._server(wanted)
        if self._tasks is not None:
            self._tasks.start_soon(self._run, wanted.replica, server)

    def _server(self, wanted: ModelReplica) -> ReplicaServer:
        return ReplicaServer(
            self._folder / "replicas" / wanted.replica,
            wanted,
            self._engines[wanted.engine],
            self._models,
            self._lifeline,
            self._asking.ask,
            lambda: self.told(),
        )

    async def _run(self, replica: str, server: ReplicaServer) -> None:
        await server.run()
        # Wanted again while it ended: it begins anew, under the next revision that the control plane sends.
        await anyio.to_thread.run_sync(self._forget, replica)
        self.revision = ""
        self._idle.set()
        self.told()

    def _forget(self, replica: str) -> None:
        self._servers.pop(replica, None)
        shutil.rmtree(self._folder / "replicas" / replica, ignore_errors=True)

    def _adopt(self) -> None:
        left: list[Path] = []
        for folder in sorted((self._folder / "replicas").glob("*")):
            record = read_record(folder)
            if record is not None and record.wanted.engine in self._engines and folder.name == record.wanted.replica:
                server = self._server(record.wanted)
                if server.adopt():
                    self._servers[folder.name] = server
                    log.info("model server adopted", replica=folder.name, deployment=record.wanted.deployment)
                    continue
            left.append(folder)
        for folder in left:
            if process := ServerProcess.adopt(folder):
                process.kill()
        if killed := sweep(left):
            log.info("what was left of model servers was ended", processes=killed)
        for folder in left:
            if record := read_record(folder):
                remove_scratch(record)
            shutil.rmtree(folder, ignore_errors=True)

    async def _look(self) -> None:
        """At the engines and models of this machine."""
        try:
            states = [await anyio.to_thread.run_sync(engine.state) for engine in self._engines.values()]
            files = await anyio.to_thread.run_sync(model_files, self._models)
        except OSError as error:  # an installation in progress
            log.warning("engines and models not looked at", error=str(error))
            return
        if (states, files) != (self._states, self._files):
            self._states, self._files = states, files
            self.told()


async def _end(server: ReplicaServer) -> None:
    await server.end(drain=False)


def model_files(folder: Path) -> list[ModelFile]:
    """Models two levels deep: a folder with ``config.json`` is SGLang's, a ``.gguf`` file llama.cpp's. Blocks."""
    found: list[ModelFile] = []
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        name = str(path.relative_to(folder))
        if name.startswith(".") or len(found) >= FILES_MOST:
            continue
        with suppress(OSError):  # gone, or closed to this user
            if path.suffix == ".gguf" and path.is_file():
                found.append(ModelFile(name=name, engine="llamacpp", size_bytes=path.stat().st_size))
            elif (path / "config.json").is_file():
                size = sum(one.stat().st_size for one in path.iterdir() if one.is_file())
                found.append(ModelFile(name=name, engine="sglang", size_bytes=size))
    return found
