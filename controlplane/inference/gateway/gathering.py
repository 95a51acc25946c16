"""Makes one answer of a stream's chunks.

llama.cpp's server goes on with an answer whose caller has gone, unless it was asked for as a stream: so it always is,
and what a caller did not want as one is put together here.
"""

from __future__ import annotations

from typing import Any

from controlplane.inference.gateway.reading import BODY_BYTES_MOST, BadAnswer

CHOICES_MOST = 64
CALLS_MOST = 256
_TEXTS = ("content", "reasoning_content", "refusal")


class Gathered:
    """Add every chunk, then take ``whole``."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._size = 0

    def add(self, chunk: dict[str, Any]) -> None:
        """One chunk, as ``reading.rebuilt`` leaves it. Raises: BadAnswer."""
        self._head |= {key: value for key, value in chunk.items() if key != "choices"}
        for choice in chunk["choices"]:
            into = self._choice(choice.get("index", 0))
            if choice.get("finish_reason") is not None:
                into["finish_reason"] = choice["finish_reason"]
            self._logprobs(into, choice.get("logprobs"))
            if "text" in choice:
                into["text"] = into.get("text", "") + self._text(choice["text"])
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
        message = into.setdefault("message", {"role": "assistant", "content": None})
        for name in _TEXTS:
            if delta.get(name) is not None:
                message[name] = (message.get(name) or "") + self._text(delta[name])
        calls = delta.get("tool_calls") or []
        if not isinstance(calls, list):
            raise BadAnswer("its tool calls are not a list")
        for call in calls:
            self._call(into.setdefault("calls", {}), call)

    def _call(self, known: dict[int, dict[str, Any]], call: Any) -> None:
        index = call.get("index", 0) if isinstance(call, dict) else None
        if type(index) is not int or not 0 <= index < CALLS_MOST:
            raise BadAnswer("its stream has a tool call without a proper index")
        into = known.setdefault(index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        function = call.get("function")
        if call.get("id"):
            into["id"] = self._text(call["id"])
        if isinstance(function, dict):
            for name in ("name", "arguments"):
                if function.get(name):
                    into["function"][name] += self._text(function[name])

    def _logprobs(self, into: dict[str, Any], found: Any) -> None:
        if not isinstance(found, dict):
            return
        known = into["logprobs"] = into["logprobs"] or {}
        for name, values in found.items():
            if isinstance(values, list):
                self._size += 64 * len(values)
                known[name] = [*known.get(name, []), *values]

    def _text(self, value: Any) -> str:
        if not isinstance(value, str):
            raise BadAnswer("its stream has something that is no text")
        self._size += len(value)
        if self._size > BODY_BYTES_MOST:
            raise BadAnswer(f"its answer has more than {BODY_BYTES_MOST:,} bytes")
        return value


def _finished(choice: dict[str, Any]) -> dict[str, Any]:
    calls = choice.pop("calls", None)
    if calls:
        choice["message"]["tool_calls"] = [calls[index] for index in sorted(calls)]
    return choice
