"""What of an MCP tool's definition is pinned, and how a change is told. Both ends of the wire use it.

A definition is what the server says of a tool in ``tools/list``. Everything that a model or a reviewer reads is pinned;
icons and ``_meta`` are not.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

PINNED = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
_DIFFERENCE_MOST = 1200


def pinned(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a definition that a review accepts."""
    return {field: definition[field] for field in PINNED if definition.get(field) is not None}


def digest(definition: Mapping[str, Any]) -> str:
    """Names a definition. Two are the same if their pinned parts are, whatever the order of their keys."""
    return f"sha256:{hashlib.sha256(_text(pinned(definition)).encode()).hexdigest()}"


def changed(reviewed: Mapping[str, Any], live: Mapping[str, Any]) -> list[str]:
    """The pinned fields in which two definitions differ."""
    return [field for field in PINNED if _text(reviewed.get(field)) != _text(live.get(field))]


def difference(reviewed: Mapping[str, Any], live: Mapping[str, Any]) -> str:
    """The changed fields line by line, ``-`` reviewed and ``+`` live; at most about a thousand characters."""
    lines: list[str] = []
    for field in changed(reviewed, live):
        before, after = (_lines(one.get(field)) for one in (reviewed, live))
        lines += difflib.unified_diff(before, after, f"reviewed {field}", f"now {field}", n=0, lineterm="")
    text = "\n".join(line[:300] for line in lines if not line.startswith("@@"))
    return text if len(text) <= _DIFFERENCE_MOST else f"{text[:_DIFFERENCE_MOST]}…"


def _lines(value: Any) -> list[str]:
    if value is None:
        return []
    text = value if isinstance(value, str) else json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    return text.splitlines()[:2000]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
