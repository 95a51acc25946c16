"""JSON that a guest wrote, parsed only if it is bounded in bytes, values and levels.

An empty list is two bytes of text and some sixty of memory, so text that is allowed may be far too much as values:
they are counted before the first is made. Parsing up to the bounds takes up to half a second in which Python does
nothing else, and ``levels`` as long again, so text above ``SMALL_BYTES`` belongs in a worker thread.
"""

from __future__ import annotations

import json
import math
from typing import Any

BYTES_MOST = 16 * 1024 * 1024
VALUES_MOST = 1_000_000
LEVELS_MOST = 128
SMALL_BYTES = 64 * 1024


def parse(text: bytes) -> Any:
    """The value of ``text``: UTF-8, finite numbers, real Unicode, within the bounds. ``ValueError`` says what not."""
    value = load(text, VALUES_MOST)
    if b"\\ud" in text or b"\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates
    if text.count(b"[") + text.count(b"{") > LEVELS_MOST and levels(value) > LEVELS_MOST:
        raise ValueError(f"nested more than {LEVELS_MOST} levels deep")
    return value


def load(text: bytes, values_most: int) -> Any:
    """As ``parse``, but as deep as Python's own parser goes, and lone surrogates may be in there."""
    if len(text) > BYTES_MOST:
        raise ValueError(f"above {BYTES_MOST} bytes")
    if _has_more_values(text, values_most):
        raise ValueError(f"more than {values_most} values; write a file to /outputs instead")
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def levels(value: Any) -> int:
    """How deep lists and objects go: 0 for a plain value. Whatever the depth, it needs no stack."""
    deep, layer = 0, [value]
    while layer := [one for one in layer if isinstance(one, list | tuple | dict)]:
        deep += 1
        layer = [inner for one in layer for inner in (one.values() if isinstance(one, dict) else one)]
    return deep


def _has_more_values(text: bytes, most: int) -> bool:
    """Whether a parser would make more than ``most`` values of ``text``, or of what is JSON at its beginning."""
    if _marks(text) < most:
        return False
    # What is within strings does not count. Without escapes every quote begins or ends one.
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * most:  # a value has at most one string of its own and one as its key
        return True
    return _marks(b"".join(bare.split(b'"')[::2])) >= most


def _marks(text: bytes) -> int:
    """At least how many values there are beside the outermost: each follows a comma or what it is in the first of."""
    opened = text.count(b"[") + text.count(b"{") - text.count(b"[]") - text.count(b"{}")
    return text.count(b",") + opened


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is out of range")
    return value
