"""Reads what model servers send, which is hostile: lines, bodies and totals are bounded, JSON is parsed, and what goes
on to a caller is rebuilt from the fields that answers of this kind have.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from controlplane.inference.gateway.requests import Operation

LINE_BYTES_MOST = 1 << 20
BODY_BYTES_MOST = 32 << 20
TOKENS_MOST = 2**40
Read = Callable[[], Awaitable[bytes]]
"""The next bytes of a body; none at its end."""
_FIELDS = ("id", "object", "created", "usage", "system_fingerprint", "service_tier")
decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


class BadAnswer(Exception):
    """A server's answer is not one: too long, no JSON, another form. The message quotes at most its beginning."""


async def whole(read: Read) -> dict[str, Any]:
    """A body as a JSON object. Raises: BadAnswer."""
    return parsed(await gathered(read, BODY_BYTES_MOST))


async def gathered(read: Read, most: int) -> bytes:
    """All of a body. Raises: BadAnswer if it is longer than ``most`` bytes."""
    body = bytearray()
    while chunk := await read():
        body += chunk
        if len(body) > most:
            raise BadAnswer(f"its answer has more than {most:,} bytes")
    return bytes(body)


def parsed(text: bytes | bytearray) -> dict[str, Any]:
    """A JSON object. Raises: BadAnswer."""
    try:
        value = decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadAnswer("its answer is not JSON") from None
    if not isinstance(value, dict):
        raise BadAnswer("its answer is not a JSON object")
    return value


class Events:
    """The objects of a server-sent event stream."""

    def __init__(self, read: Read, masked: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> None:
        """``masked`` takes out of an error what nobody may see."""
        self._read = read
        self._masked = masked
        self._buffer = bytearray()
        self._at = 0
        self._data = bytearray()
        self._total = 0

    async def next(self) -> dict[str, Any] | None:
        """The next one; None at ``[DONE]``. Raises: BadAnswer, also when the stream ends before that."""
        while True:
            while (end := self._buffer.find(b"\n", self._at)) >= 0:
                line = bytes(self._buffer[self._at : end]).rstrip(b"\r")
                self._at = end + 1
                if line.startswith(b"data:"):
                    self._data += line[5:].strip()
                elif line.startswith(b"error:"):
                    raise BadAnswer(f"it failed: {said(self._masked(parsed(line[6:])))}")
                elif not line and self._data:
                    data, self._data = self._data, bytearray()
                    return None if data == b"[DONE]" else parsed(data)
            await self._more()

    async def _more(self) -> None:
        del self._buffer[: self._at]
        self._at = 0
        if len(self._buffer) + len(self._data) > LINE_BYTES_MOST:
            raise BadAnswer(f"its stream has an event of more than {LINE_BYTES_MOST:,} bytes")
        chunk = await self._read()
        if not chunk:
            raise BadAnswer("its stream ended before its answer")
        self._total += len(chunk)
        if self._total > BODY_BYTES_MOST:
            raise BadAnswer(f"its stream has more than {BODY_BYTES_MOST:,} bytes")
        self._buffer += chunk


def said(error: Mapping[str, Any]) -> str:
    """A server's own words about an error, shortened, without control characters."""
    inner = error.get("error", error)
    text = inner.get("message", "") if isinstance(inner, dict) else inner
    return "".join(one if one.isprintable() else " " for one in str(text)[:500])


def rebuilt(answer: Mapping[str, Any], model: str, operation: Operation) -> dict[str, Any]:
    """An answer to this operation, or a chunk of one, with known fields and our name of the model. Raises: BadAnswer,
    also for the answer to another operation."""
    if "error" in answer:
        raise BadAnswer(f"it failed: {said(answer)}")
    key = "data" if operation is Operation.EMBEDDING else "choices"
    kept = {name: answer[name] for name in (*_FIELDS, key) if name in answer}
    if not isinstance(kept.get(key), list) or not all(isinstance(one, dict) for one in kept[key]):
        raise BadAnswer(f"its answer has no list of `{key}`")
    kept["model"] = model
    return kept


def usage(answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """(prompt, completion) tokens, if the server says so."""
    found = answer.get("usage")
    if not isinstance(found, dict):
        return None
    return _count(found.get("prompt_tokens")), _count(found.get("completion_tokens"))


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= TOKENS_MOST else 0
