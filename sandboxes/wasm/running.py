"""One command in one worker: streams, frames, limits, and the verdict on how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

from sandboxes import frames
from sandboxes.execution import Command, Event, Exited, ExitReason, Progress, Stderr, Stdout, ToolAnswer, ToolHandler
from sandboxes.hostfiles import outputs_bytes, usage
from sandboxes.spec import Limits
from sandboxes.wasm.launch import WorkerProcess

WATCH_SECONDS = 0.05
KILLED_CODE = 137
_READ_BYTES = 1 << 16
_MAX_WAITING_CALLS = 64
_MAX_WAITING_EVENTS = 10_000
_TRAPS = {
    "memory": ExitReason.OOM,
    "fuel": ExitReason.FUEL,
    "interrupt": ExitReason.TIMEOUT,
    "disk": ExitReason.DISK,
    "other": ExitReason.KILLED,
}


class Execution:
    """Owns the worker until ``run`` returns. ``events`` ends with the only ``Exited``, or without if ``run`` raised."""

    def __init__(
        self, worker: WorkerProcess, command: Command, inputs: dict[str, str], limits: Limits, tools: ToolHandler
    ) -> None:
        self._worker = worker
        self._command = command
        self._inputs = inputs
        self._limits = limits
        self._tools = tools
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._calls: asyncio.Queue[frames.ToolCall | frames.Large] = asyncio.Queue()
        self._large_bytes = 0
        self._reader: frames.FrameReader | None = frames.FrameReader()
        self._result: frames.Result | None = None
        self._verdict: ExitReason | None = None
        self._message = ""
        self._output_left = limits.output_bytes
        self._truncated = False
        self._over = False

    def end(self, reason: ExitReason, message: str = "") -> None:
        """Kill the guest; the first reason given stands. Nothing happens once it is over."""
        if not self._over:
            if self._verdict is None:
                self._verdict, self._message = reason, message
            self._worker.kill()

    async def run(self) -> None:
        """From handing over the job to the last byte of output; then the worker's process is gone."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        timer = loop.call_later(self._limits.wall_seconds, self.end, ExitReason.TIMEOUT)
        report = bytearray()
        try:
            self._worker.apply(self._limits)
            async with asyncio.TaskGroup() as tasks:
                streams = [
                    tasks.create_task(_drain(self._worker.stdout_fd, lambda data: self._output(Stdout, data))),
                    tasks.create_task(_drain(self._worker.stderr_fd, lambda data: self._output(Stderr, data))),
                    tasks.create_task(_drain(self._worker.channel.fileno(), self._take_frames)),
                ]
                helpers = [
                    tasks.create_task(self._talk()),
                    tasks.create_task(self._watch_disk()),
                ]
                await _drain(self._worker.control.fileno(), report.extend)
                self._over = True
                self._worker.kill()  # whatever is left of the group holds the streams open
                await asyncio.wait(streams)
                for helper in helpers:
                    helper.cancel()
            oom_kills = self._worker.group.oom_kills() if self._worker.group is not None else 0
        finally:
            timer.cancel()
            self._over = True
            await asyncio.to_thread(self._worker.end_process)
        seconds = loop.time() - started
        self.events.put_nowait(await asyncio.to_thread(self._exited, bytes(report), oom_kills, seconds))

    async def _talk(self) -> None:
        """Hand over the limits and the job, then answer calls one after the other."""
        loop = asyncio.get_running_loop()
        limits = self._limits
        bounds = {
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
            "disk_bytes": limits.disk_bytes,
            "open_files": limits.open_files,
            "wall_seconds": limits.wall_seconds,
            "fuel": limits.fuel,
        }
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            await loop.sock_sendall(self._worker.control, json.dumps(bounds).encode() + b"\n")
            await loop.sock_sendall(self._worker.channel, frames.job_frame(self._command, self._inputs))
            while True:
                call = await self._calls.get()
                if isinstance(call, frames.Large):
                    self._large_bytes -= len(call.body)
                    try:
                        call = await asyncio.to_thread(frames.parse_call, call)
                    except frames.BadFrame as error:
                        self._broke(error)
                        return
                try:
                    answer = await self._tools(call.tool, call.args)
                except Exception:
                    # A handler's own failure may carry what the guest must not learn.
                    answer = ToolAnswer(error={"type": "internal", "message": f"calling {call.tool!r} failed"})
                await loop.sock_sendall(self._worker.channel, frames.answer_frame(call.call_id, answer))

    async def _watch_disk(self) -> None:
        outputs, scratch = self._worker.outputs, self._worker.scratch
        while True:
            sizes = await asyncio.to_thread(lambda: (usage(outputs), usage(scratch)))
            size, inodes = (sum(column) for column in zip(*sizes, strict=True))
            if size > self._limits.disk_bytes:
                self.end(ExitReason.DISK, f"files of {size} bytes; the limit is {self._limits.disk_bytes}")
            elif inodes > self._limits.inodes:
                self.end(ExitReason.DISK, f"more than {self._limits.inodes} files and folders")
            await asyncio.sleep(WATCH_SECONDS)

    def _output(self, kind: type[Stdout] | type[Stderr], data: bytes) -> None:
        kept = data[: self._output_left]
        self._output_left -= len(kept)
        self._truncated = self._truncated or len(kept) < len(data)
        if kept:
            self.events.put_nowait(kind(data=kept))

    def _take_frames(self, data: bytes) -> None:
        if self._reader is None:
            return
        try:
            for frame in self._reader.feed(data):
                self._take_frame(frame)
        except frames.BadFrame as error:
            self._broke(error)

    def _broke(self, error: frames.BadFrame) -> None:
        self._reader = None
        self._result = frames.Result(schema_error=f"the guest broke the frame protocol: {error}")
        self.end(ExitReason.KILLED, f"the guest broke the frame protocol: {error}")

    def _take_frame(self, frame: frames.Frame | frames.Large) -> None:
        if isinstance(frame, frames.ToolCall | frames.Large):
            if isinstance(frame, frames.Large):
                self._large_bytes += len(frame.body)
            if self._calls.qsize() >= _MAX_WAITING_CALLS or self._large_bytes > frames.MAX_FRAME_BYTES:
                raise frames.BadFrame(
                    f"more than {_MAX_WAITING_CALLS} calls or {frames.MAX_FRAME_BYTES} bytes of them without waiting"
                    " for an answer"
                )
            self._calls.put_nowait(frame)
        elif isinstance(frame, Progress):
            if self.events.qsize() < _MAX_WAITING_EVENTS:
                self.events.put_nowait(frame)
        else:
            self._result = frame

    def _exited(self, report_line: bytes, oom_kills: int, seconds: float) -> Exited:
        report: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            said = json.loads(report_line)
            report = said if isinstance(said, dict) else {}
        code, signal, message = KILLED_CODE, None, self._message
        if self._verdict is not None:
            reason, signal = self._verdict, 9
        elif "exit" in report:
            reason, code = ExitReason.EXITED, int(report["exit"])
        elif "trap" in report:
            reason, message = _TRAPS.get(report["trap"], ExitReason.KILLED), str(report.get("message", ""))
        elif oom_kills:
            reason, signal = ExitReason.OOM, 9
        else:
            reason, signal, message = ExitReason.KILLED, 9, "the worker process died"
        size, most = outputs_bytes(self._worker.outputs), self._limits.disk_bytes
        if reason is ExitReason.EXITED and size > most:
            reason, message = ExitReason.DISK, f"the files left in /outputs would be {size} bytes; the limit is {most}"
        result = self._result if reason is ExitReason.EXITED and code == 0 else None
        value, schema_error = result.value() if result is not None else (None, None)
        return Exited(
            code=code,
            reason=reason,
            signal=signal,
            message=message,
            result=value,
            has_result=result is not None and schema_error is None,
            schema_error=schema_error,
            output_truncated=self._truncated,
            wall_seconds=seconds,
            memory_peak_bytes=report.get("memory"),
        )


async def _drain(fd: int, take: Callable[[bytes], None]) -> None:
    """Read ``fd`` to its end, for ever and at once, so that no writer ever waits for whoever consumes."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            take(data)
        elif not ended.done():
            loop.remove_reader(fd)
            ended.set_result(None)

    loop.add_reader(fd, readable)
    try:
        await ended
    finally:
        loop.remove_reader(fd)
