"""Reads what model servers send, which is hostile: lines, bodies and totals are bounded, JSON is parsed, and what goes
on to a caller is rebuilt from the fields that answers of this kind have.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

LINE_BYTES_MOST = 1 << 20
BODY_BYTES_MOST = 32 << 20
TOKENS_MOST = 2**40
_FIELDS = ("id", "object", "created", "choices", "data", "usage", "system_fingerprint", "service_tier")
decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


class BadAnswer(Exception):
    """A server's answer is not one: too long, no JSON, another form. The message quotes at most its beginning."""


async def whole(chunks: AsyncIterator[bytes]) -> dict[str, Any]:
    """A body as a JSON object. Raises: BadAnswer."""
    return parsed(await gathered(chunks, BODY_BYTES_MOST))


async def gathered(chunks: AsyncIterator[bytes], most: int) -> bytes:
    """All of a body. Raises: BadAnswer if it is longer than ``most`` bytes."""
    body = bytearray()
    async for chunk in chunks:
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


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The objects of a server-sent event stream, until ``[DONE]``. Raises: BadAnswer, also when it ends before."""
    total = 0
    buffer = bytearray()
    data = bytearray()
    async for chunk in chunks:
        total += len(chunk)
        buffer += chunk
        if total > BODY_BYTES_MOST:
            raise BadAnswer(f"its stream has more than {BODY_BYTES_MOST:,} bytes")
        begin = 0
        while (end := buffer.find(b"\n", begin)) >= 0:
            line = bytes(buffer[begin:end]).rstrip(b"\r")
            begin = end + 1
            if not line:
                if data == b"[DONE]":
                    return
                if data:
                    yield parsed(data)
                    data.clear()
            elif line.startswith(b"data:"):
                data += line[5:].strip()
            elif line.startswith(b"error:"):
                raise BadAnswer(f"it failed: {said(parsed(line[6:]))}")
        del buffer[:begin]
        if len(buffer) + len(data) > LINE_BYTES_MOST:
            raise BadAnswer(f"its stream has an event of more than {LINE_BYTES_MOST:,} bytes")
    raise BadAnswer("its stream ended before its answer")


def said(error: Mapping[str, Any]) -> str:
    """A server's own words about an error, shortened, without control characters."""
    inner = error.get("error", error)
    text = inner.get("message", "") if isinstance(inner, dict) else inner
    return "".join(one if one.isprintable() else " " for one in str(text)[:500])


def rebuilt(answer: Mapping[str, Any], model: str) -> dict[str, Any]:
    """An answer, or a chunk of one, with known fields and our name of the model. Raises: BadAnswer."""
    if "error" in answer:
        raise BadAnswer(f"it failed: {said(answer)}")
    kept = {key: answer[key] for key in _FIELDS if key in answer}
    key = "data" if "data" in kept else "choices"
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
