"""Taking secrets out of what comes back: the value itself and the usual encodings of it become ``***``."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"
SHORTEST_ENCODED = 4
"""Encoded forms of a shorter value would match ordinary text everywhere."""


def encodings(value: str) -> set[str]:
    """The forms a service may echo ``value`` in: plain, URL, JSON, hex, base64 at each of the three alignments."""
    raw = value.encode()
    forms = {value, quote(value, safe=""), quote(value), quote_plus(value)}
    forms |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    if len(raw) < SHORTEST_ENCODED:
        return forms - {""}
    forms |= {raw.hex(), raw.hex().upper()}
    for lead in range(3):
        # Characters that also depend on the bytes around the value are cut off on both sides.
        first = (0, 2, 3)[lead]
        body = base64.b64encode(b"\0" * lead + raw)
        whole = (lead + len(raw)) * 8 // 6
        text = body[first:whole].decode()
        forms |= {text, text.replace("+", "-").replace("/", "_")}
    return forms - {""}


class Scrubber:
    """Masks every form of every given value."""

    def __init__(self, values: Iterable[str]) -> None:
        forms = {form for value in values if value for form in encodings(value)}
        ordered = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(form) for form in ordered)) if ordered else None

    def text(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def json(self, value: Any) -> Any:
        """A JSON value with every string, key and number masked. Below 200 levels everything is masked."""
        return value if self._pattern is None else self._walk(value, self._pattern, 0)

    def _walk(self, value: Any, pattern: re.Pattern[str], depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int | float):
            return MASK if pattern.search(json.dumps(value)) else value
        if depth > 200:
            return MASK
        if isinstance(value, list):
            return [self._walk(item, pattern, depth + 1) for item in value]
        return {self.text(str(key)): self._walk(item, pattern, depth + 1) for key, item in value.items()}
