"""Makes one answer of a stream's chunks.

llama.cpp's server goes on with an answer whose caller has gone, unless it was asked for as a stream: so it always is,
and what a caller did not want as one is put together here. Pieces are kept as they come and joined once, so that a
chunk costs what it is long, however much came before it.
"""

from __future__ import annotations

from typing import Any

from controlplane.inference.gateway.reading import BODY_BYTES_MOST, BadAnswer

CHOICES_MOST = 64
CALLS_MOST = 256
CHUNKS_MOST = 1 << 18
"""Of one stream; a server sends one for every token or for some."""
LOGPROB_BYTES = 64
"""What one token's is counted as, at least."""
_TEXTS = ("content", "reasoning_content", "refusal")


class Gathered:
    """Add every chunk, then take ``whole``."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._chunks = 0
        self._size = 0

    def add(self, chunk: dict[str, Any]) -> None:
        """One chunk, as ``reading.rebuilt`` leaves it. Raises: BadAnswer."""
        self._chunks += 1
        if self._chunks > CHUNKS_MOST:
            raise BadAnswer(f"its stream has more than {CHUNKS_MOST:,} chunks")
        self._head |= {key: value for key, value in chunk.items() if key != "choices"}
        for choice in chunk["choices"]:
            into = self._choice(choice.get("index", 0))
            if choice.get("finish_reason") is not None:
                into["finish_reason"] = choice["finish_reason"]
            self._logprobs(into, choice.get("logprobs"))
            if "text" in choice:
                into.setdefault("text", []).append(self._text(choice["text"]))
            self._delta(into, choice.get("delta"))

    def whole(self) -> dict[str, Any]:
        """The answer, in the form of one that was not streamed."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        return {**self._head, "object": self._kind, "choices": [_finished(one) for one in choices]}

    def _choice(self, index: Any) -> dict[str, Any]:
        if type(index) is not int or not 0 <= index < CHOICES_MOST:
            raise BadAnswer("its stream has a choice without a proper index")
        return self._choices.setdefault(index, {"index": index, "finish_reason": None, "logprobs": None})

    def _delta(self, into: dict[str, Any], delta: Any) -> None:
        if not isinstance(delta, dict):
            return
        message = into.setdefault("message", {})
        for name in _TEXTS:
            if delta.get(name) is not None:
                message.setdefault(name, []).append(self._text(delta[name]))
        calls = delta.get("tool_calls") or []
        if not isinstance(calls, list):
            raise BadAnswer("its tool calls are not a list")
        for call in calls:
            self._call(into.setdefault("calls", {}), call)

    def _call(self, known: dict[int, dict[str, Any]], call: Any) -> None:
        index = call.get("index", 0) if isinstance(call, dict) else None
        if type(index) is not int or not 0 <= index < CALLS_MOST:
            raise BadAnswer("its stream has a tool call without a proper index")
        into = known.setdefault(index, {"id": "", "name": [], "arguments": []})
        function = call.get("function")
        if call.get("id"):
            into["id"] = self._text(call["id"])
        if isinstance(function, dict):
            for name in ("name", "arguments"):
                if function.get(name):
                    into[name].append(self._text(function[name]))

    def _logprobs(self, into: dict[str, Any], found: Any) -> None:
        if not isinstance(found, dict):
            return
        known = into["logprobs"] = into["logprobs"] or {}
        for name, values in found.items():
            if isinstance(values, list):
                self._grow(LOGPROB_BYTES * len(values))
                known.setdefault(name, []).extend(values)

    def _text(self, value: Any) -> str:
        if not isinstance(value, str):
            raise BadAnswer("its stream has something that is no text")
        self._grow(len(value))
        return value

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > BODY_BYTES_MOST:
            raise BadAnswer(f"its answer has more than {BODY_BYTES_MOST:,} bytes")


def _finished(choice: dict[str, Any]) -> dict[str, Any]:
    whole = {key: value for key, value in choice.items() if key not in ("text", "message", "calls")}
    if "text" in choice:
        whole["text"] = "".join(choice["text"])
    if "message" in choice:
        joined = {name: "".join(pieces) for name, pieces in choice["message"].items()}
        whole["message"] = {"role": "assistant", "content": None, **joined}
    if calls := choice.get("calls"):
        whole["message"]["tool_calls"] = [_called(calls[index]) for index in sorted(calls)]
    return whole


def _called(call: dict[str, Any]) -> dict[str, Any]:
    function = {name: "".join(call[name]) for name in ("name", "arguments")}
    return {"id": call["id"], "type": "function", "function": function}
