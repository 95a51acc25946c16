"""One model server, kept as it is wanted: started, watched, started again with growing pauses, drained, ended.

starting ──it answers──▶ ready ──not wanted, or wanted otherwise──▶ draining ──▶ stopped
    ▲                      │
    └──── the pause ◀── failed (it ended, is silent, or cannot be started)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from dataplane.model_wire import SOURCE_PATTERN, ModelPhase, ModelReplica, ModelState
from dataplane.models.log_file import LogFile
from dataplane.models.process import Record, ServerProcess, free_port, read_record
from dataplane.models.server import LOOPBACK, LaunchRefused, Load, ModelServer, ServerSilent

TICK_SECONDS = 0.25
LOOK_SECONDS = 2.0
"""Between two looks at a server that is ready."""
START_SECONDS = 900.0
"""Large models load for minutes."""
READY_SECONDS = 25.0
SILENT_MOST = 3
"""Looks in a row without an answer, after which it is started again."""
TERM_SECONDS = 8.0
KILL_SECONDS = 5.0
DRAIN_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 60.0
"""Ready for so long, it has not failed in a row."""
_DETAIL_CHARACTERS = 500

log = structlog.get_logger("stockade.node.models")
AskAt = Callable[[int, str, float], Awaitable[bytes]]
"""``Ask`` of the server at a port."""


def pause_seconds(failures: int) -> float:
    """Before a start, after so many failures in a row: 1, 2, 4, … at most 60."""
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 10))


class ReplicaServer:
    """``run`` until nothing is wanted and nothing is left. ``told`` is called whenever the state is another."""

    def __init__(
        self,
        folder: Path,
        wanted: ModelReplica,
        engine: ModelServer,
        models: Path,
        lifeline: int,
        ask: AskAt,
        told: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._wanted: ModelReplica | None = wanted
        self._name = wanted
        self._engine = engine
        self._models = models
        self._lifeline = lifeline
        self._ask_at = ask
        self._told = told
        self._woken = anyio.Event()
        self._phase: ModelPhase = "starting"
        self._detail = ""
        self._load = Load()
        self._silent = 0
        self._ended_for = ""
        self._failures = 0
        self._again_at = 0.0
        self._since = 0.0
        self._looked = 0.0
        self._drain_seconds = DRAIN_SECONDS
        self.log = LogFile(folder / "output.log")
        self.process: ServerProcess | None = None
        known = read_record(folder)
        self._restarts = known.restarts if known else 0

    def want(self, wanted: ModelReplica | None, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Change the wish; ``None`` drains for so long and ends it."""
        self._wanted, self._drain_seconds = wanted, drain_seconds
        self._woken.set()

    def adopt(self) -> bool:
        """Take over what an earlier daemon started, if it lives and would be started alike today. Blocks."""
        found = ServerProcess.adopt(self._folder)
        if found is None or self._wanted is None or found.record.digest != self._digest(self._wanted):
            return False
        self.process = found
        return True

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it answers, while it is to be asked."""
        serves = self.process is not None and self._phase in ("ready", "draining")
        return (LOOPBACK, self.process.record.port) if serves and self.process else None

    def state(self) -> ModelState:
        """As the control plane is told."""
        started = self.process.record.wanted if self.process else self._wanted or self._name
        return ModelState(
            replica=self._name.replica,
            deployment=self._name.deployment,
            spec=started.spec,
            state=self._phase,
            detail=self._detail,
            slots=self._load.slots,
            running=self._load.running,
            waiting=self._load.waiting,
            token_usage=self._load.token_usage,
            restarts=self._restarts,
            log_bytes=self.log.written(),
        )

    async def run(self) -> None:
        """Keep it as it is wanted."""
        self._since = anyio.current_time()
        while True:
            self._woken = anyio.Event()
            if not await self._step():
                return
            with anyio.move_on_after(TICK_SECONDS):
                await self._woken.wait()

    async def end(self, *, drain: bool) -> None:
        """End what runs, bounded in time: drained, asked, killed."""
        process = self.process
        if process is None:
            return
        if drain and self._phase == "ready":
            self._become("draining", f"for up to {self._drain_seconds:g} s")
            await self._drained(process)
        process.ask_to_end()
        if not await self._gone(process, TERM_SECONDS):
            process.kill()
            await self._gone(process, KILL_SECONDS)
        await anyio.to_thread.run_sync(process.clear)
        self.process = None
        self._load = Load()

    async def _step(self) -> bool:
        """One look at it; ``False`` when nothing is wanted and nothing is left."""
        wanted, process, now = self._wanted, self.process, anyio.current_time()
        if wanted is None:
            await self.end(drain=True)
            self._become("stopped")
            return False
        if process is None:
            if now >= self._again_at:
                await self._start(wanted)
        elif (how := process.ended()) is not None:
            await anyio.to_thread.run_sync(process.clear)
            self._fail(how)
        elif process.record.wanted != wanted:
            await self.end(drain=True)
            self._again_at = 0.0
            self._become("starting", "another specification")
        elif self._phase != "ready":
            await self._await_ready(process, now)
        elif now - self._looked >= LOOK_SECONDS:
            await self._look(process)
        return True

    async def _start(self, wanted: ModelReplica) -> None:
        self._become("starting")
        try:
            if not re.fullmatch(SOURCE_PATTERN, wanted.source):
                raise LaunchRefused(f"{wanted.source!r} is not a name in the models folder")
            source, port = self._models / wanted.source, free_port()
            launch = await anyio.to_thread.run_sync(self._engine.launch, wanted, source, port, abandon_on_cancel=True)
            record = Record(
                wanted=wanted, port=port, digest="", lifeline=self._lifeline, scratch="",
                restarts=self._restarts,
            )  # fmt: skip
            record.digest = await anyio.to_thread.run_sync(self._digest, wanted)
            self.process = await anyio.to_thread.run_sync(ServerProcess.start, self._folder, record, launch)
        except (LaunchRefused, OSError) as refused:
            self._fail(str(refused))
            return
        self._since = anyio.current_time()
        log.info("model server started", replica=wanted.replica, deployment=wanted.deployment, pid=self.process.pid)

    async def _await_ready(self, process: ServerProcess, now: float) -> None:
        try:
            await self._ask_at(process.record.port, self._engine.ready_path, READY_SECONDS)
            await self._look(process)
        except ServerSilent as silent:
            if now - self._since > START_SECONDS:
                self._end_for(process, f"it was not ready after {START_SECONDS:g} s: {silent}")
            return
        if self._silent == 0:
            self._since = anyio.current_time()
            self._become("ready")
            log.info("model server ready", replica=self._name.replica, deployment=self._name.deployment)

    async def _look(self, process: ServerProcess) -> None:
        async def ask(path: str, seconds: float) -> bytes:
            return await self._ask_at(process.record.port, path, seconds)

        try:
            self._load = await self._engine.load(ask)
            self._silent = 0
        except ServerSilent as silent:
            self._silent += 1
            if self._silent >= SILENT_MOST:
                self._end_for(process, f"it does not answer: {silent}")
        self._looked = anyio.current_time()
        if self._phase == "ready" and self._looked - self._since > STEADY_SECONDS:
            self._failures = 0
        try:
            await anyio.to_thread.run_sync(self.log.trim)
        except OSError as error:
            log.warning("the log of a model server was not cut", replica=self._name.replica, error=str(error))

    def _end_for(self, process: ServerProcess, why: str) -> None:
        self._ended_for = why
        process.kill()

    def _fail(self, why: str) -> None:
        why, self._ended_for = self._ended_for or why, ""
        self._failures += 1
        self._restarts += 1
        self._silent = 0
        self.process, self._load = None, Load()
        pause = pause_seconds(self._failures)
        self._again_at = anyio.current_time() + pause
        said = self._last_line()
        self._become("failed", f"{why}; started again in {pause:g} s" + (f"; it said: {said}" if said else ""))
        log.warning("model server failed", replica=self._name.replica, why=why, again_in=pause)

    def _last_line(self) -> str:
        _, end = self.log.tail(4096)
        lines = [line.strip() for line in end.decode(errors="replace").splitlines()]
        lines = [line for line in lines if line and not line.startswith("stockade: ")]
        return "".join(one if one.isprintable() else "\ufffd" for one in lines[-1][:300]) if lines else ""

    def _become(self, phase: ModelPhase, detail: str = "") -> None:
        changed = (phase, detail) != (self._phase, self._detail)
        self._phase, self._detail = phase, detail[:_DETAIL_CHARACTERS]
        if changed:
            self._told()

    async def _drained(self, process: ServerProcess) -> None:
        """Wait until it has had nothing to do on two looks, or the time is over, or it is gone."""
        idle = 0
        with anyio.move_on_after(self._drain_seconds):
            while idle < 2 and process.ended() is None:
                await self._look(process)
                idle = idle + 1 if self._load.running + self._load.waiting == 0 else 0
                await anyio.sleep(TICK_SECONDS)

    async def _gone(self, process: ServerProcess, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            while process.ended() is None:  # noqa: ASYNC110 - an adopted one is nobody's child, so nothing is told
                await anyio.sleep(0.05)
        return process.ended() is not None

    def _digest(self, wanted: ModelReplica) -> str:
        """Over all that a server is started with. Blocks: it looks at the engine."""
        engine = self._engine.state()
        parts = [msgspec.json.encode(wanted), engine.version.encode(), str(self._lifeline).encode()]
        parts.append(str(self._models).encode())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()
