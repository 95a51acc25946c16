"""Taking secrets out of what comes back: the value itself and the usual encodings of it become ``***``.

A service may write each character of a secret in another way than the last, and what it wrote may be quoted again. So
the text is unescaped as JSON, HTML and URLs are, some rounds of it; whatever then shows a secret is masked where it
stands. Every pass takes time linear in the text, whoever made it; seconds for megabytes of escapes, so a large answer
belongs in a worker thread.
"""

from __future__ import annotations

import base64
import html
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

MASK = "***"
SHORTEST_ENCODED = 4
"""Hexadecimal and base64 of a shorter value would match ordinary text everywhere."""
LEVELS_MOST = 200
ROUNDS = 4
SHORTEST_READ = 8
"""A secret that itself looks like escapes is also looked for as what they mean; not as a space or two."""
_LOWER = {ord(digit): digit.lower() for digit in "ABCDEF"}
_CONTROL = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
Span = tuple[int, int]


class Scrubber:
    """Masks every form of every given value."""

    def __init__(self, values: Iterable[str]) -> None:
        given = {value for value in values if value}
        self._texts = given | {text for value in given for text in (*_base64(value), *_read_as_escapes(value))}
        self._spaced = {value for value in given if " " in value}
        self._hexadecimal = {value.encode().hex() for value in given if len(value.encode()) >= SHORTEST_ENCODED}
        self._shortest = min(map(len, self._texts), default=0)

    def text(self, text: str) -> str:
        spans = sorted(self._spans(text)) if self._texts else []
        if not spans:
            return text
        pieces, end = [], 0
        for start, stop in spans:
            if start >= end:
                pieces += [text[end:start], MASK]
            end = max(end, stop)
        return "".join([*pieces, text[end:]])

    def json(self, value: Any) -> Any:
        """A JSON value with every string, key and number masked. Below ``LEVELS_MOST`` levels everything is masked."""
        return self._walk(value, 0) if self._texts else value

    def unsure(self, text: str) -> int:
        """How many characters at the end of ``text`` could be the beginning of a secret, itself or encoded whole."""
        lower = text.translate(_LOWER)
        most = 0
        for forms, end in ((self._texts, text), (self._hexadecimal, lower)):
            for form in forms:
                for length in range(min(len(form) - 1, len(end)), most, -1):
                    if end.endswith(form[:length]):
                        most = length
                        break
        return most

    def _walk(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int | float):
            return MASK if self._found(json.dumps(value)) else value
        if depth > LEVELS_MOST:
            return MASK
        if isinstance(value, list):
            return [self._walk(item, depth + 1) for item in value]
        return {self.text(str(key)): self._walk(item, depth + 1) for key, item in value.items()}

    def _spans(self, text: str) -> list[Span]:
        """Where in ``text`` something of a secret stands, in any form."""
        spans = self._found(text)
        ways: list[_Unescaped] = []
        for _ in range(ROUNDS):
            before = text
            for sign, runs, unescape in _ENCODINGS:
                if sign not in text or len(text) < self._shortest:
                    continue
                ways.append(_Unescaped(text, runs, unescape))
                text = ways[-1].text
                for span in self._found(text):
                    for way in reversed(ways):
                        span = way.origin(span)
                    spans.append(span)
            if text == before:
                break
        return spans

    def _found(self, text: str) -> list[Span]:
        spans: list[Span] = []
        if len(text) < self._shortest:
            return spans
        for wanted in self._texts:
            if wanted in text:
                spans += _occurrences(text, wanted)
        if self._spaced and "+" in text:
            for wanted in self._spaced:
                spans += _occurrences(text.replace("+", " "), wanted.replace("+", " "))
        if self._hexadecimal:
            lower = text.translate(_LOWER)
            for wanted in self._hexadecimal:
                if wanted in lower:
                    spans += _occurrences(lower, wanted)
        return spans


class _Unescaped:
    """A text without one kind of escapes, and where in the text before its pieces were."""

    def __init__(self, before: str, runs: re.Pattern[str], unescape: Callable[[str], str]) -> None:
        unescape = lru_cache(1024)(unescape)  # hostile text is escapes and nothing else, mostly the same ones
        pieces: list[str] = []
        self._starts: list[int] = []
        self._runs: list[tuple[int, int, int]] = []
        here = there = 0
        for run in runs.finditer(before):
            start, stop = run.span()
            inside = unescape(run[0])
            pieces += (before[there:start], inside)
            here += start - there
            self._starts.append(here)
            here, there = here + len(inside), stop
            self._runs.append((here, start, stop))
        self.text = "".join([*pieces, before[there:]])

    def origin(self, span: Span) -> Span:
        """The same place in the text before; of escapes in a row, all."""
        return self._origin(span[0])[0], self._origin(span[1] - 1)[1]

    def _origin(self, at: int) -> Span:
        """Where one character came from."""
        index = bisect_right(self._starts, at) - 1
        if index < 0:
            return at, at + 1
        end, start, stop = self._runs[index]
        return (start, stop) if at < end else (stop + at - end, stop + at - end + 1)


def _occurrences(text: str, wanted: str) -> Iterator[Span]:
    at = text.find(wanted)
    while at >= 0:
        yield at, at + len(wanted)
        at = text.find(wanted, at + len(wanted))


def _backslashes(run: str) -> str:
    try:
        text: str = json.loads(f'"{run}"', strict=False)
    except ValueError:  # escapes of other languages than JSON
        text = _ESCAPE.sub(_escaped, run)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins the halves of pairs


def _escaped(found: re.Match[str]) -> str:
    if digits := found[1] or found[2]:
        return chr(int(digits, 16))
    return _CONTROL.get(found[3], found[3])


def _percents(run: str) -> str:
    return bytes.fromhex(run.replace("%", "")).decode(errors="replace")


_ENCODINGS: tuple[tuple[str, re.Pattern[str], Callable[[str], str]], ...] = (
    ("\\", re.compile(rf"(?:{_ESCAPE.pattern})+", re.DOTALL), _backslashes),
    ("&", re.compile(r"(?:&(?:#[0-9]{1,8}|#[xX][0-9a-fA-F]{1,7}|[A-Za-z][A-Za-z0-9]{1,31});?)+"), html.unescape),
    ("%", re.compile(r"(?:%[0-9a-fA-F]{2})+"), _percents),
)


def _read_as_escapes(value: str) -> set[str]:
    """What becomes of a secret that looks like escapes where text that holds it is unescaped."""
    texts = set()
    for _ in range(ROUNDS):
        for sign, runs, unescape in _ENCODINGS:
            if sign in value:
                value = _Unescaped(value, runs, unescape).text
                texts.add(value)
    return {text for text in texts if len(text) >= SHORTEST_READ}


def _base64(value: str) -> set[str]:
    """What base64 makes of ``value``, in both alphabets, wherever in its input it stands."""
    raw = value.encode()
    if len(raw) < SHORTEST_ENCODED:
        return set()
    texts = set()
    for lead in range(3):
        # Characters that also depend on the bytes around the value are cut off on both sides.
        first = (0, 2, 3)[lead]
        whole = (lead + len(raw)) * 8 // 6
        text = base64.b64encode(b"\0" * lead + raw)[first:whole].decode()
        texts |= {text, text.replace("+", "-").replace("/", "_")}
    return texts
