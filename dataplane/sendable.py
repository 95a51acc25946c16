"""Whether a value from a guest or a tool can travel on the wire, so that a hostile one cannot stop what others send.

Lone surrogates, endless nesting and numbers without bounds are valid in some JSON reader, and poison in the next.
"""

from __future__ import annotations

from typing import Any

import msgspec

LEVELS_MOST = 256
"""Levels of nesting: far below what any reader on the way takes, whatever its interpreter's own limit is."""


class Unsendable(ValueError):
    """The value is not JSON that every reader takes; the message says why."""


def encoded_bytes(value: Any) -> int:
    """How many bytes ``value`` takes as JSON. Raises ``Unsendable``."""
    try:
        data = msgspec.json.encode(value)
        if data.count(b"[") + data.count(b"{") > LEVELS_MOST and _levels(msgspec.json.decode(data)) > LEVELS_MOST:
            raise RecursionError
    except UnicodeError:
        raise Unsendable("it contains text that is not Unicode (a lone surrogate)") from None
    except RecursionError:
        raise Unsendable(f"it is nested more than {LEVELS_MOST} levels deep") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise Unsendable(f"it is not plain JSON ({type(error).__name__})") from None
    return len(data)


def _levels(value: Any) -> int:
    """How deep lists and objects go: 0 for a plain value."""
    levels, layer = 0, [value]
    while layer := [one for one in layer if isinstance(one, (list, dict))]:
        levels += 1
        layer = [inner for one in layer for inner in (one.values() if isinstance(one, dict) else one)]
    return levels


def plain(text: str) -> str:
    """``text`` with what is not Unicode replaced."""
    return text.encode("utf-8", "replace").decode()
