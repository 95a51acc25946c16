"""How large and how deep the values of a run may get: what is stored must be cheap to load, show and compare again."""

from __future__ import annotations

from typing import Any

from controlplane.store import encoded

VALUE_MOST = 16 * 1024 * 1024
"""Bytes of JSON of one step's output."""
RUN_MOST = 256 * 1024 * 1024
"""Bytes of JSON of all outputs of a run."""
LEVELS_MOST = 128
"""Lists and objects inside each other; writers of JSON give up, each at another depth, not far above."""


class TooMuch(Exception):
    """A value may not be stored; ``error_type`` and the message are what its step fails with."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


def bounded(value: Any, before: int = 0) -> str | None:
    """The value's JSON text, ``None`` for null; ``before`` is how many bytes the run's outputs have so far.

    Raises ``TooMuch``.
    """
    if value is None:
        return None
    deep = f"the output is nested more than {LEVELS_MOST} levels deep"
    try:
        text = encoded(value)
    except RecursionError:
        raise TooMuch("schema", deep) from None
    if len(text) > VALUE_MOST:
        message = f"the output has {len(text):,} bytes of JSON, and {VALUE_MOST:,} at most: write an artifact"
        raise TooMuch("schema", message)
    if before + len(text) > RUN_MOST:
        message = f"the outputs of this run have more than {RUN_MOST:,} bytes of JSON: write artifacts"
        raise TooMuch("budget", message)
    if text.count("[") + text.count("{") > LEVELS_MOST and _too_deep(value):
        raise TooMuch("schema", deep)
    return text


def _too_deep(value: Any) -> bool:
    """Layer by layer, so that no value is deep enough to break this."""
    layer = [value]
    for _ in range(LEVELS_MOST + 1):
        layer = [one for one in layer if isinstance(one, (list, dict))]
        if not layer:
            return False
        layer = [inner for one in layer for inner in (one.values() if isinstance(one, dict) else one)]
    return True
