"""The host's end of a guest's channel: 4-byte big-endian length and JSON, whatever carries it.

Guest to host: ``{"id","tool","args"}``, ``{"progress":[fraction,text]}``, ``{"result":value}``,
``{"schema_error":text}``. Host to guest: one job first (``job_frame``), then ``{"id","value"}`` or
``{"id","error":{type,message,remedy}}``. Everything that arrives is hostile; a frame that is not one of these, or a
second result, ends the channel with ``BadFrame``. What is large is handed on as bytes, for a worker thread to parse.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sandboxes import strict_json
from sandboxes.execution import Command, Progress, ToolAnswer

MAX_RESULT_BYTES = strict_json.BYTES_MOST
MAX_FRAME_BYTES = MAX_RESULT_BYTES + 64 * 1024
MAX_CALL_VALUES = 100_000
"""JSON values in one call's arguments. A guest may call again and again, so it is less than in a result."""
MAX_PROGRESS_CHARS = 1000
_RESULT = b'{"result":'


class BadFrame(Exception):
    """The guest broke the protocol."""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """The guest asks; answer with ``answer_frame(call_id, ...)``."""

    call_id: int
    tool: str
    args: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The guest's result as it came, or why it has none that counts."""

    text: bytes = b""
    schema_error: str | None = None

    def value(self) -> tuple[Any, str | None]:
        """The result, or ``None`` and why it is not strict JSON. Once per command, in a worker thread."""
        if self.schema_error is not None:
            return None, self.schema_error
        try:
            return strict_json.parse(self.text), None
        except Exception as error:  # whatever it is, the guest's bytes made it
            return None, str(error)[:1000] or type(error).__name__


@dataclass(frozen=True, kw_only=True)
class Large:
    """A frame too large to be parsed on the event loop: a call, or the guest breaks the protocol (``parse_call``)."""

    body: bytes


Frame = ToolCall | Progress | Result


def job_frame(command: Command, inputs: Mapping[str, str]) -> bytes:
    """The first frame: what ``guest/runner.py`` is to run. ``inputs`` maps names to guest paths."""
    return encode(
        {
            "source": command.source,
            "call": command.call,
            "args": list(command.args),
            "inputs": dict(inputs),
            "env": dict(command.env),
        }
    )


def answer_frame(call_id: int, answer: ToolAnswer) -> bytes:
    """What the guest's pending call returns. A value that is not JSON becomes an error of type ``internal``."""
    try:
        if answer.error is not None:
            return encode({"id": call_id, "error": dict(answer.error)})
        return encode({"id": call_id, "value": answer.value})
    except (TypeError, ValueError, RecursionError) as error:
        return encode({"id": call_id, "error": {"type": "internal", "message": f"the tool's value: {error}"}})


def encode(frame: Mapping[str, Any]) -> bytes:
    """Length and JSON. ``ValueError`` for NaN."""
    body = json.dumps(frame, allow_nan=False).encode()
    return struct.pack(">I", len(body)) + body


class FrameReader:
    """Cuts one command's byte stream into frames; holds at most one incomplete frame of ``MAX_FRAME_BYTES``."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._has_result = False

    def feed(self, data: bytes) -> Iterator[Frame | Large]:
        """The frames completed by ``data``. ``BadFrame`` on the first one that is none, and on a second result."""
        self._data += data
        start = 0
        while len(self._data) - start >= 4:
            size = int.from_bytes(self._data[start : start + 4], "big")
            if size > MAX_FRAME_BYTES:
                raise BadFrame(f"a frame of {size} bytes; the most is {MAX_FRAME_BYTES}")
            if len(self._data) - start - 4 < size:
                break
            frame = _frame(bytes(self._data[start + 4 : start + 4 + size]))
            if isinstance(frame, Result):
                if self._has_result:
                    raise BadFrame("a second result")
                self._has_result = True
            yield frame
            start += 4 + size
        del self._data[:start]


def parse_call(large: Large) -> ToolCall:
    """What a large frame must be. Call it in a worker thread. ``BadFrame`` if it is anything else."""
    frame = _parse(large.body)
    if not isinstance(frame, ToolCall):
        raise BadFrame(f"a frame of {len(large.body)} bytes that is neither a call nor a result")
    return frame


def _frame(body: bytes) -> Frame | Large:
    if body.startswith(_RESULT):
        return Result(text=body[len(_RESULT) : -1].strip())
    return Large(body=body) if len(body) > strict_json.SMALL_BYTES else _parse(body)


def _parse(body: bytes) -> ToolCall | Progress | Result:
    """Whatever goes wrong with a guest's bytes is the guest's doing."""
    try:
        frame = strict_json.load(body, MAX_CALL_VALUES)
        match frame:
            case {"id": int(call_id), "tool": str(tool), "args": dict(args)}:
                return ToolCall(call_id=call_id, tool=tool, args=args)
            case {"progress": [int() | float() as fraction, str(text)]}:
                # Bounded first: an integer may be beyond what a float can be.
                return Progress(fraction=float(min(1, max(0, fraction))), text=text[:MAX_PROGRESS_CHARS])
            case {"schema_error": str(text)}:
                return Result(schema_error=text[:2000])
    except Exception as error:
        raise BadFrame(f"not a frame: {type(error).__name__}: {str(error)[:200]}") from None
    raise BadFrame("a frame that is neither a call, progress nor a result")
