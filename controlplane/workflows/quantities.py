"""Durations and sizes as people write them: ``"30s"``, ``"512Mi"``; plain numbers are seconds and bytes."""

from __future__ import annotations

import math
import re
from datetime import datetime

MAX_DURATION_SECONDS = 366 * 86_400.0
MAX_SIZE_BYTES = 64 * 1024**4

DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)?(B|k|M|G|T|Ki|Mi|Gi|Ti)$"

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {
    "B": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4,
    "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4,
}  # fmt: skip
_NUMBER_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([A-Za-z]+)\Z")


def parse_duration(value: object) -> float:
    """Seconds of ``"500ms"``, ``"30s"``, ``"5m"``, ``"1h"``, ``"1d"`` or a number of seconds.

    Raises:
        ValueError: anything else, negative, not finite, or above 366 days.
    """
    seconds = _quantity(value, _SECONDS, "a duration such as '30s', '500ms', '1h' or a number of seconds")
    if seconds > MAX_DURATION_SECONDS:
        raise ValueError("a duration may be at most 366 days")
    return seconds


def parse_size(value: object) -> int:
    """Bytes of ``"512Mi"``, ``"2G"`` or a number of bytes.

    Raises:
        ValueError: anything else, negative, not finite, or above 64 Ti.
    """
    size = _quantity(value, _BYTES, "a size such as '512Mi', '2Gi' or a number of bytes")
    if size > MAX_SIZE_BYTES:
        raise ValueError("a size may be at most 64Ti")
    return int(size)


def parse_instant(value: str) -> datetime:
    """The instant of an RFC 3339 time with an offset, ``2027-01-31T08:00:00Z``.

    Raises:
        ValueError: anything else, or no offset.
    """
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None or "T" not in value.upper():
        raise ValueError("expected an instant with an offset, such as '2027-01-31T08:00:00Z'")
    return instant


def _quantity(value: object, units: dict[str, float] | dict[str, int], expected: str) -> float:
    if isinstance(value, str):
        match = _NUMBER_UNIT.match(value)
        if match is None or match[2] not in units:
            raise ValueError(f"expected {expected}")
        return float(match[1]) * units[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected {expected}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"expected {expected}, not negative")
    return float(value)
