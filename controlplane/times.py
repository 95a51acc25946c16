"""Integer nanoseconds inside, RFC 3339 outside."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload


@overload
def rfc3339(time_ns: int) -> str: ...
@overload
def rfc3339(time_ns: int | None) -> str | None: ...
def rfc3339(time_ns: int | None) -> str | None:
    """``2026-03-01T12:00:00.000123Z``: UTC, microseconds. None stays None."""
    if time_ns is None:
        return None
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + f".{time_ns % 1_000_000_000 // 1000:06d}Z"
