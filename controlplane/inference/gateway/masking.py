"""Takes the key that an external server was called with out of what it sends back: errors, answers, streams.

A key may be cut anywhere between a stream's chunks. So the end of a text that could be the beginning of the key waits
for the next chunk of that text, or for its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio.to_thread

from dataplane.scrubbing import Scrubber

SHORTEST_IN_ANSWERS = 8
"""A shorter key ("none", "test") is a word that answers have; it is masked in errors only."""
Path = tuple[str | int, ...]


class Masking:
    """For one answer. Its work takes long for texts made for that, so it is done in worker threads."""

    def __init__(self, key: str | None) -> None:
        self._errors = Scrubber([key] if key else [])
        self._answers = self._errors if key and len(key) >= SHORTEST_IN_ANSWERS else None
        self._waiting: dict[tuple[int, Path], str] = {}
        self._head: dict[str, Any] = {}

    def error(self, said: dict[str, Any]) -> dict[str, Any]:
        """What a server says of its failure, without the key."""
        masked: dict[str, Any] = self._errors.json(said)
        return masked

    async def answer(self, answer: dict[str, Any], *, is_chunk: bool) -> dict[str, Any]:
        """An answer or the next chunk of one, without the key."""
        if "error" in answer:
            return self.error(answer)
        if self._answers is None:
            return answer
        return await anyio.to_thread.run_sync(self._masked, self._answers, answer, is_chunk)

    def rest(self) -> dict[str, Any] | None:
        """After the last chunk: one more with what still waits, if anything does."""
        choices: dict[int, dict[str, Any]] = {}
        for (index, path), text in self._waiting.items():
            _put(choices.setdefault(index, {"index": index, "finish_reason": None}), path, text)
        self._waiting.clear()
        return {**self._head, "choices": list(choices.values())} if choices else None

    def _masked(self, scrubber: Scrubber, answer: dict[str, Any], is_chunk: bool) -> dict[str, Any]:
        masked: dict[str, Any] = scrubber.json(answer)
        choices = masked.get("choices")
        if not is_chunk or not isinstance(choices, list):
            return masked
        self._head = {name: value for name, value in masked.items() if name not in ("choices", "usage")}
        for choice in choices:
            if isinstance(choice, dict) and type(index := choice.get("index", 0)) is int:
                self._choice(scrubber, choice, index)
        return masked

    def _choice(self, scrubber: Scrubber, choice: dict[str, Any], index: int) -> None:
        last: dict[Path, tuple[dict[str, Any], str]] = {}
        for path, holder, name in _texts(choice):
            text = scrubber.text(self._waiting.pop((index, path), "") + holder[name])
            until = len(text) - scrubber.unsure(text)
            if until < len(text):
                self._waiting[index, path] = text[until:]
            holder[name] = text[:until]
            last[path] = holder, name
        if choice.get("finish_reason") is None:
            return
        for path in [path for other, path in self._waiting if other == index]:
            text = self._waiting.pop((index, path))
            if path in last:
                holder, name = last[path]
                holder[name] += text
            else:
                _put(choice, path, text)


def _texts(choice: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """The texts of a chunk's choice that go on in the next chunk: what they are, and the field they are in."""
    if isinstance(choice.get("text"), str):
        yield ("text",), choice, "text"
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return
    yield from ((("delta", name), delta, name) for name in _names(delta) if name != "role")
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and type(index := call.get("index", 0)) is int:
            function = call.get("function")
            if isinstance(function, dict):
                for name in _names(function):
                    yield ("delta", "tool_calls", index, "function", name), function, name


def _names(fields: dict[str, Any]) -> list[str]:
    return [name for name, value in fields.items() if isinstance(value, str)]


def _put(choice: dict[str, Any], path: Path, text: str) -> None:
    """Add a text to a choice that has nothing where it belongs."""
    if len(path) == 1:
        choice["text"] = text
        return
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        delta = choice["delta"] = {}
    if len(path) == 2:
        delta[str(path[1])] = text
        return
    calls = delta.get("tool_calls")
    if not isinstance(calls, list):
        calls = delta["tool_calls"] = []
    calls.append({"index": path[2], "function": {path[4]: text}})
