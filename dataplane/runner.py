"""One attempt from assignment to report: fetch, open, execute, stream, upload.

Deadlines nest, innermost first: the sandbox's own wall time, then this runner's (``GRACE_SECONDS`` more).
Who failed is decided here once: the guest's end is a reason, the platform's a ``platform_error``.
"""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import PurePosixPath
from typing import Literal, assert_never

import anyio
import anyio.to_thread
import msgspec
import structlog

from dataplane.artifact_cache import FetchFailed
from dataplane.attempts import Attempt
from dataplane.backoff import insist
from dataplane.client import ControlPlane, ControlPlaneUnavailable, RequestRefused
from dataplane.forwarder.flow_log import FlowLog
from dataplane.inputs import InputRefused, Inputs
from dataplane.leases import Lease
from dataplane.output_spool import OutputSpool
from dataplane.protocol import ArtifactRef, CodeWork, OutputChunk, Report
from dataplane.sendable import Unsendable, encoded, plain
from dataplane.tool_gateway import ToolGateway
from sandboxes.driver import Driver, Feature, Sandbox
from sandboxes.errors import DriverFailed
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
)
from sandboxes.spec import Limits, Mount, SandboxSpec, Tier
from sandboxes.strict_json import SMALL_BYTES

log = structlog.get_logger("stockade.node")

Stream = Literal["stdout", "stderr"]
GRACE_SECONDS = 30.0
TAIL_BYTES = 4096
FLUSH_SECONDS = 10.0
OUTPUTS_MOST = 256
RESULT_FILE = "output.json"
REFUSED_FOR_ITSELF = frozenset({400, 413, 415, 422})
"""Answers to an upload that are about what is uploaded: its size, its name, its type."""


class Runner:
    """Runs attempts; holds nothing between them. ``run`` never raises but for cancellation from outside."""

    def __init__(
        self,
        *,
        control_plane: ControlPlane,
        drivers: Mapping[Tier, Driver],
        inputs: Inputs,
        gateway: ToolGateway,
        spool: OutputSpool,
        lease: Lease,
        guest_calls: Callable[[Attempt], ToolHandler],
        forwarder: Callable[[Attempt], ConnectionHandler],
        flows: FlowLog,
    ) -> None:
        self._control_plane = control_plane
        self._drivers = drivers
        self._inputs = inputs
        self._gateway = gateway
        self._spool = spool
        self._lease = lease
        self._guest_calls = guest_calls
        self._forwarder = forwarder
        self._flows = flows

    async def run(self, attempt: Attempt) -> Report:
        """What became of it. ``attempt.ending`` overrides what the sandbox said."""
        assignment = attempt.assignment
        report = Report(attempt=assignment.attempt, fence=assignment.fence)
        started = self._lease.clock()
        try:
            with attempt.scope:
                with anyio.move_on_after(assignment.wall_seconds + GRACE_SECONDS) as deadline:
                    if assignment.code is not None:
                        await self._code(attempt, assignment.code, report)
                    else:
                        await self._call(attempt, report)
                if deadline.cancelled_caught:
                    _timed_out(
                        attempt, report, f"no end within {assignment.wall_seconds:g} s and {GRACE_SECONDS:g} s of grace"
                    )
        except InputRefused as error:
            report.reason, report.code, report.message = "input", -1, str(error)
        except FetchFailed as error:
            _platform(report, "fetch_failed", str(error))
        except DriverFailed as error:
            _platform(report, "driver_failed", str(error))
        except RequestRefused as error:
            _platform(report, "driver_failed", f"the control plane refused an upload: {error}")
        except Exception as error:  # a defect in one driver must not take every other attempt of this node along
            log.exception("attempt broke", attempt=assignment.attempt, fence=assignment.fence)
            _platform(report, "driver_failed", f"the node broke off with {_kinds(error)}; its log has the details")
        if report.reason == ExitReason.TIMEOUT and attempt.was_frozen and report.platform_error is None:
            # The guest's clock went on while it could not run: that is the outage's doing, not the guest's.
            _platform(report, "frozen", "its wall time ran out while the node had to hold it frozen")
        if attempt.ending == "cancelled":
            report.reason, report.message, report.platform_error = ExitReason.CANCELLED, attempt.why, None
            report.has_result, report.result, report.error = False, None, None
        elif attempt.ending is not None:
            _platform(report, attempt.ending, attempt.why)
        report.wall_seconds = report.wall_seconds or self._lease.clock() - started
        if assignment.code is not None and assignment.code.network:
            await self._flows.flushed(assignment.attempt, assignment.fence, FLUSH_SECONDS)
        if assignment.code is not None and (report.stdout_bytes or report.stderr_bytes):
            await self._spool.flushed(assignment.attempt, assignment.fence, FLUSH_SECONDS)
        return report

    async def _call(self, attempt: Attempt, report: Report) -> None:
        assignment = attempt.assignment
        report.reason = "tool"
        if assignment.call is None:
            _platform(report, "driver_failed", "the assignment has neither code nor call")
            return
        with anyio.move_on_after(assignment.wall_seconds) as scope:
            outcome = await self._gateway.perform(assignment.call, assignment.attempt, assignment.fence)
            report.artifacts = list(outcome.artifacts)
            report.error = outcome.error
            if outcome.error is None:
                report.has_result, report.result = True, outcome.value
        if scope.cancelled_caught:
            message = f"no answer within {assignment.wall_seconds:g} s"
            report.error = {"type": "timeout", "message": message, "retryable": True}

    async def _code(self, attempt: Attempt, work: CodeWork, report: Report) -> None:
        driver = self._driver(work)
        async with AsyncExitStack() as stack:
            mounts = await self._inputs.mounts(attempt.assignment, work.inputs, stack)
            await self._lease.wait_held()
            spec = _spec(attempt, work, mounts)
            opening = self._lease.clock()
            sandbox = await stack.enter_async_context(driver.open(spec, attempt.assignment.attempt))
            report.start_seconds = self._lease.clock() - opening
            attempt.sandbox = sandbox
            attempt.phase = "running"
            try:
                if not self._lease.held() and Feature.FREEZE in driver.features:
                    await attempt.freeze()
                await self._execute(attempt, sandbox, work, report)
                if report.reason == ExitReason.EXITED and attempt.ending is None:
                    attempt.phase = "uploading"
                    await self._upload(attempt, sandbox, work, report)
            finally:
                attempt.sandbox = None

    def _driver(self, work: CodeWork) -> Driver:
        try:
            return self._drivers[Tier(work.sandbox.tier)]
        except (KeyError, ValueError):
            raise DriverFailed(
                f"this node has no tier {work.sandbox.tier!r}, only {', '.join(sorted(self._drivers)) or 'none'}"
            ) from None

    async def _execute(self, attempt: Attempt, sandbox: Sandbox, work: CodeWork, report: Report) -> None:
        command = Command(
            language=work.language,
            source=work.source,
            call=work.call,
            args=tuple(work.args),
        )
        stdout, stderr = bytearray(), bytearray()
        exited: Exited | None = None
        tools = self._guest_calls(attempt)
        connections = self._forwarder(attempt) if work.network else no_connections
        try:
            async with aclosing(_events(sandbox, command, tools, connections)) as events:
                async for event in events:
                    match event:
                        case Stdout(data=data):
                            self._stream(attempt, "stdout", report.stdout_bytes, data, stdout)
                            report.stdout_bytes += len(data)
                        case Stderr(data=data):
                            self._stream(attempt, "stderr", report.stderr_bytes, data, stderr)
                            report.stderr_bytes += len(data)
                        case Progress(fraction=fraction, text=text):
                            self._progress(attempt, fraction, text)
                        case Exited():
                            exited = event
                        case _:
                            assert_never(event)
        finally:
            report.stdout_tail = stdout.decode(errors="replace")
            report.stderr_tail = stderr.decode(errors="replace")
        if exited is None:
            raise DriverFailed("the sandbox ended without saying how")
        await anyio.to_thread.run_sync(_fill, report, exited)

    def _stream(self, attempt: Attempt, stream: Stream, offset: int, data: bytes, tail: bytearray) -> None:
        tail += data[-TAIL_BYTES:]
        del tail[:-TAIL_BYTES]
        name, fence = attempt.key
        self._spool.put(OutputChunk(attempt=name, fence=fence, stream=stream, offset=offset, data=data))

    def _progress(self, attempt: Attempt, fraction: float, text: str) -> None:
        name, fence = attempt.key
        bounded = min(1.0, max(0.0, fraction)) if fraction == fraction else 0.0
        self._spool.put(
            OutputChunk(
                attempt=name, fence=fence, stream="progress", offset=0, fraction=bounded, text=plain(text[:1000])
            )
        )

    async def _upload(self, attempt: Attempt, sandbox: Sandbox, work: CodeWork, report: Report) -> None:
        references: list[ArtifactRef] = []
        files = [
            file
            for file in await sandbox.outputs()
            if not (file.path == RESULT_FILE and report.has_result and work.call is None)
        ]
        for file in files[:OUTPUTS_MOST]:
            try:
                reference = await insist(partial(self._put, attempt, sandbox, file.path))
                references.append(reference)
                if await self._inputs.keep(reference, sandbox.stream_output(file.path)):
                    report.cached.append(reference.digest)
            except (FileNotFoundError, RequestRefused) as error:
                if isinstance(error, RequestRefused) and error.status not in REFUSED_FOR_ITSELF:
                    raise
                # The guest made it so that it cannot be read or stored. Said as the platform's failure it would
                # be tried again for ever.
                report.reason, report.has_result, report.result = ExitReason.DISK, False, None
                why = str(error) if isinstance(error, RequestRefused) else "it cannot be read"
                report.message = plain(f"the file {file.path!r} in /outputs cannot be kept: {why}")
                break
        report.artifacts = references
        if len(files) > OUTPUTS_MOST:
            report.message = (
                f"{len(files)} files below /outputs; the first {OUTPUTS_MOST} by name were kept. {report.message}"
            )

    async def _put(self, attempt: Attempt, sandbox: Sandbox, path: str) -> ArtifactRef:
        name, fence = attempt.key
        broken: Exception | None = None

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal broken
            try:
                async for piece in sandbox.stream_output(path):
                    yield piece
            except (OSError, DriverFailed) as error:
                broken = error
                raise

        # By its ending only: of a whole name, which a guest chose, mimetypes believes that it may be a data URL.
        media_type = mimetypes.guess_type("file" + PurePosixPath(path).suffix)[0] or "application/octet-stream"
        try:
            return await self._control_plane.upload(name, fence, path, media_type, pieces)
        except ControlPlaneUnavailable:
            if broken is not None:  # the connection broke because there was nothing more to send
                raise broken from None
            raise


async def _events(
    sandbox: Sandbox, command: Command, tools: ToolHandler, connections: ConnectionHandler
) -> AsyncGenerator[Event, None]:
    """The port promises an iterator; closing it early is what kills the guest, so close it where it can be closed."""
    events = sandbox.execute(command, tools, connections)
    try:
        async for event in events:
            yield event
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def _kinds(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(_kinds(inner) for inner in error.exceptions)
    return str(error) if isinstance(error, DriverFailed) else type(error).__name__


def _spec(attempt: Attempt, work: CodeWork, mounts: list[Mount]) -> SandboxSpec:
    wall = min(work.sandbox.wall_seconds, attempt.assignment.wall_seconds)
    return SandboxSpec(
        tier=Tier(work.sandbox.tier),
        image=work.sandbox.image,
        limits=Limits(memory_bytes=work.sandbox.memory_bytes, wall_seconds=wall, cpu=work.sandbox.cpu_milli / 1000),
        mounts=tuple(mounts),
        network=bool(work.network),
        gpus=tuple(work.sandbox.gpus),
    )


def _fill(report: Report, exited: Exited) -> None:
    report.code = exited.code
    report.reason = exited.reason
    report.message = plain(exited.message)
    report.schema_error = None if exited.schema_error is None else plain(exited.schema_error)
    if exited.has_result:
        try:
            text = encoded(exited.result)
            # Large values go on as their text: they are encoded again for their size and each time they are sent.
            report.has_result, report.result = True, exited.result if len(text) <= SMALL_BYTES else msgspec.Raw(text)
        except Unsendable as error:
            report.schema_error = f"the result cannot be sent: {error}"
    report.output_truncated = exited.output_truncated
    report.wall_seconds = exited.wall_seconds
    report.memory_peak_bytes = exited.memory_peak_bytes


def _platform(report: Report, kind: str, message: str) -> None:
    report.platform_error, report.message = kind, message
    report.has_result, report.result, report.error = False, None, None


def _timed_out(attempt: Attempt, report: Report, message: str) -> None:
    """This runner's own deadline: the guest's fault only if the guest was what ran."""
    if attempt.phase == "fetching":
        _platform(report, "fetch_failed", f"inputs: {message}")
    elif attempt.phase == "uploading":
        _platform(report, "driver_failed", f"outputs: {message}")
    elif report.reason == "tool":
        report.error = {"type": "timeout", "message": message, "retryable": True}
    else:
        report.reason, report.code, report.message = ExitReason.TIMEOUT, -1, message
