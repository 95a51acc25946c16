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
# Names of secrets, as workflows list them, are not secret values: a denial without them explains nothing.
_NAMES_ONLY = frozenset({"secret", "secrets", "step_secrets"})


def masked(question_input: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a question's input that is safe to store. Only tool arguments are masked by key; elsewhere
    ``secret`` and ``secrets`` hold names."""
    copied: dict[str, Any] = {}
    for key, value in question_input.items():
        if type(value) is str:
            copied[key] = _cut(value) if len(value) > 64 else value
        elif key == "args":
            copied[key] = _hidden(value)
        elif key in _NAMES_ONLY or type(value) not in (dict, list):
            copied[key] = value
        else:
            copied[key] = _hidden(value)
    return copied


@lru_cache(maxsize=4096)
def _sounds_secret(key: str) -> bool:
    return key not in _NAMES_ONLY and _CREDENTIAL.search(key) is not None


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return _cut(value) if len(value) > 64 else value
    if isinstance(value, Mapping):
        return {key: MASK if _sounds_secret(key) else _hidden(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(inner) for inner in value]
    return value


def _cut(text: str) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= LONGEST_TEXT_BYTES:
        return text
    return encoded[:LONGEST_TEXT_BYTES].decode("utf-8", "ignore") + f"… ({len(encoded)} bytes)"
