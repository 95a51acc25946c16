"""Whether a value from a guest or a tool can travel on the wire, so that a hostile one cannot stop what others send.

Lone surrogates, endless nesting and numbers without bounds are valid in some JSON reader, and poison in the next.
"""

from __future__ import annotations

from typing import Any

import msgspec

DEPTH_SPARE = 400
"""Levels of nesting that a reader has left for its own messages around the value."""


class Unsendable(ValueError):
    """The value is not JSON that every reader takes; the message says why."""


def encoded_bytes(value: Any) -> int:
    """How many bytes ``value`` takes as JSON. Raises ``Unsendable``."""
    try:
        data = msgspec.json.encode(value)
        msgspec.json.decode(b"[" * DEPTH_SPARE + data + b"]" * DEPTH_SPARE)
    except UnicodeError:
        raise Unsendable("it contains text that is not Unicode (a lone surrogate)") from None
    except RecursionError:
        raise Unsendable("it is nested too deeply") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise Unsendable(f"it is not plain JSON ({type(error).__name__})") from None
    return len(data)


def plain(text: str) -> str:
    """``text`` with what is not Unicode replaced."""
    return text.encode("utf-8", "replace").decode()
