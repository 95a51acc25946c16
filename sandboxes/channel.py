"""The host's service at one end of a guest's frame channel: tools answered, progress passed on, the result kept."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path

from anyio import to_thread
from anyio.abc import TaskGroup

from sandboxes import frames
from sandboxes.execution import Command, Progress, ToolAnswer, ToolHandler
from sandboxes.hostfiles import read_output
from sandboxes.outbox import Outbox

_CALLS_AT_ONCE = 8
_CHUNK = 65_536


class Channel:
    """One command's channel. ``result`` is what the guest sent last, if anything."""

    def __init__(self, tools: ToolHandler, outbox: Outbox) -> None:
        self.result: frames.Result | None = None
        self._tools = tools
        self._outbox = outbox
        self._sending = asyncio.Lock()

    async def serve(self, ours: socket.socket, command: Command, inputs: Mapping[str, str], side: TaskGroup) -> None:
        """Send the job, then serve until the guest lets go. ``ours`` does not block; the caller closes it.

        Answers run in ``side``. Whatever breaks the protocol ends the channel, not the host.
        """
        loop, reader = asyncio.get_running_loop(), frames.FrameReader()
        slots, large = asyncio.Semaphore(_CALLS_AT_ONCE), asyncio.Semaphore(1)
        side.start_soon(self._send, ours, frames.job_frame(command, inputs))
        try:
            while data := await loop.sock_recv(ours, _CHUNK):
                for frame in reader.feed(data):
                    if isinstance(frame, Progress):
                        self._outbox.put_progress(frame)
                    elif isinstance(frame, frames.Result):
                        self.result = frame
                    elif isinstance(frame, frames.Large):
                        await large.acquire()
                        call = await to_thread.run_sync(frames.parse_call, frame)
                        side.start_soon(self._answer, ours, call, large)
                    else:
                        await slots.acquire()
                        side.start_soon(self._answer, ours, frame, slots)
                await asyncio.sleep(0)  # a socket that always has something would never let others run
        except frames.BadFrame as error:
            self.result = frames.Result(schema_error=f"the guest broke the channel's protocol: {error}")
            with contextlib.suppress(OSError):  # not closed: answers may be on their way through it
                ours.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    async def _answer(self, ours: socket.socket, frame: frames.ToolCall, slots: asyncio.Semaphore) -> None:
        try:
            answer = await self._tools(frame.tool, frame.args)
        except Exception as error:
            message = f"the tool's handler failed ({type(error).__name__}); see the node's log"
            answer = ToolAnswer(error={"type": "internal", "message": message})
        finally:
            slots.release()
        await self._send(ours, frames.answer_frame(frame.call_id, answer))

    async def _send(self, ours: socket.socket, data: bytes) -> None:
        async with self._sending:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(ours, data)


def file_result(outputs: Path) -> frames.Result | None:
    """What ``/outputs/output.json`` says, ``None`` without one. Blocks."""
    try:
        return frames.Result(text=read_output(outputs, "output.json", frames.MAX_RESULT_BYTES + 1))
    except FileNotFoundError:
        return None
