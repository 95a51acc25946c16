"""Lists in pages: ``{data, next_cursor}``; a cursor is opaque to callers and names the last row they saw."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any

from fastapi import Query

from controlplane.errors import field_problem, invalid_request

LIMIT_MAX = 200
Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="How many at most.")]
Cursor = Annotated[str | None, Query(max_length=2048, description="`next_cursor` of the page before.")]
_INTEGER_MAX = 2**63 - 1


def page(data: list[Any], next_cursor: str | None = None) -> dict[str, Any]:
    """One page."""
    return {"data": data, "next_cursor": next_cursor}


def write_cursor(*position: int | str) -> str:
    """The cursor that stands for ``position``."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def time_cursor(cursor: str | None) -> tuple[int, str] | None:
    """The (time, id) of a cursor of a list ordered by time. Raises: ApiError invalid-request."""
    position = _read(cursor)
    if position is None:
        return None
    if len(position) == 2 and type(position[0]) is int and isinstance(position[1], str):
        return position[0], position[1]
    raise _bad()


def text_cursor(cursor: str | None) -> str | None:
    """The text of a cursor of a list ordered by one column. Raises: ApiError invalid-request."""
    position = _read(cursor)
    if position is None:
        return None
    if len(position) == 1 and isinstance(position[0], str):
        return position[0]
    raise _bad()


def _read(cursor: str | None) -> list[Any] | None:
    if cursor is None:
        return None
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        position = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        json.dumps(position, ensure_ascii=False).encode()
    except (ValueError, binascii.Error, RecursionError):
        raise _bad() from None
    if not isinstance(position, list) or any(type(x) is int and abs(x) > _INTEGER_MAX for x in position):
        raise _bad()
    return position


def _bad() -> Exception:
    return invalid_request([field_problem("", "cursor is not one this list gave", "start without a cursor")])
