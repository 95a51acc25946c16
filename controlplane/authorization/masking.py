"""What of a question may be stored in the decision log: no secret values, no long text.

Names decide, because the log must be safe before anyone has looked at the value: whatever stands under a key
that sounds like a credential becomes ``***``, with all that is below it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MASK = "***"
LONGEST_TEXT_BYTES = 256
_CREDENTIAL = re.compile(
    r"passw|passphrase|token|secret|credential|authorization|api[_-]?key|private[_-]?key|cookie|bearer", re.IGNORECASE
)


def masked(question_input: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a question's input that is safe to store."""
    # Only these hold what a stranger wrote; the schemas keep the rest to names (also of secrets) and numbers.
    copied = {key: _cut(value) if type(value) is str else value for key, value in question_input.items()}
    if "args" in copied:
        copied["args"] = _hidden(copied["args"])
    if isinstance(to := copied.get("destination"), Mapping):
        # Query strings carry keys.
        copied["destination"] = {**to, "path": _cut(str(to.get("path", "")).partition("?")[0])}
    if isinstance(asked := copied.get("definition"), Mapping):
        copied["definition"] = {**asked, "data": [_cut(str(uri)) for uri in asked.get("data", [])]}
    return copied


@lru_cache(maxsize=4096)
def _sounds_secret(key: str) -> bool:
    return _CREDENTIAL.search(key) is not None


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, Mapping):
        return {key: MASK if _sounds_secret(key) else _hidden(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(inner) for inner in value]
    return value


def _cut(text: str) -> str:
    if len(text) <= LONGEST_TEXT_BYTES // 4:
        return text
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= LONGEST_TEXT_BYTES:
        return text
    return encoded[:LONGEST_TEXT_BYTES].decode("utf-8", "ignore") + f"… ({len(encoded)} bytes)"
