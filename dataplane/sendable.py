"""Whether a value from a guest or a tool can travel on the wire, so that a hostile one cannot stop what others send.

Lone surrogates, endless nesting and numbers without bounds are valid in some JSON reader, and poison in the next.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sandboxes.strict_json import levels

LEVELS_MOST = 100
"""Levels of nesting: below what any reader on the way takes; the control plane refuses a value above 128."""


class Unsendable(ValueError):
    """The value is not JSON that every reader takes; the message says why."""


def encoded_bytes(value: Any) -> int:
    """How many bytes ``value`` takes as JSON. Raises ``Unsendable``."""
    return len(encoded(value))


def encoded(value: Any) -> bytes:
    """``value`` as JSON. Raises ``Unsendable``. A large one belongs in a worker thread."""
    try:
        data = msgspec.json.encode(value)
        if data.count(b"[") + data.count(b"{") > LEVELS_MOST and levels(value) > LEVELS_MOST:
            raise RecursionError
    except UnicodeError:
        raise Unsendable("it contains text that is not Unicode (a lone surrogate)") from None
    except RecursionError:
        raise Unsendable(f"it is nested more than {LEVELS_MOST} levels deep") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise Unsendable(f"it is not plain JSON ({type(error).__name__})") from None
    return data


def plain(text: str) -> str:
    """``text`` with what is not Unicode replaced."""
    return text.encode("utf-8", "replace").decode()
