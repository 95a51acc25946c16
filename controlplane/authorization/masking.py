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
# No character takes more than four bytes: this much needs no measuring.
_SHORT_CHARACTERS = LONGEST_TEXT_BYTES // 4
_CREDENTIAL = re.compile(
    r"passw|passphrase|token|secret|credential|authorization|api[_-]?key|private[_-]?key|cookie|bearer", re.IGNORECASE
)


def masked(question_input: Mapping[str, Any]) -> Mapping[str, Any]:
    """A question's input, safe to store: itself when nothing of it must be hidden, else a copy."""
    args = question_input.get("args")
    hidden = _hidden(args) if args else args
    if hidden == args and not _has_text_to_cut(question_input):
        return question_input
    # Only these hold what a stranger wrote; the schemas keep the rest to names (also of secrets) and numbers.
    copied = {key: _cut(value) if type(value) is str else value for key, value in question_input.items()}
    if "args" in copied:
        copied["args"] = hidden
    if isinstance(to := copied.get("destination"), Mapping):
        # Query strings carry keys.
        copied["destination"] = {**to, "path": _cut(str(to.get("path", "")).partition("?")[0])}
    if isinstance(asked := copied.get("definition"), Mapping):
        copied["definition"] = {**asked, "data": [_cut(str(uri)) for uri in asked.get("data", [])]}
    return copied


def _has_text_to_cut(question_input: Mapping[str, Any]) -> bool:
    if "destination" in question_input or "definition" in question_input:
        return True
    longest = 0
    for value in question_input.values():  # a generator takes three times as long
        if type(value) is str and len(value) > longest:
            longest = len(value)
    return longest > _SHORT_CHARACTERS


@lru_cache(maxsize=4096)
def _sounds_secret(key: str) -> bool:
    return _CREDENTIAL.search(key) is not None


def _hidden(value: Any) -> Any:
    kind = type(value)
    if kind is str:
        return _cut(value)
    if kind is dict or isinstance(value, Mapping):
        return {key: MASK if _sounds_secret(key) else _hidden(inner) for key, inner in value.items()}
    if kind is list or kind is tuple:
        return [_hidden(inner) for inner in value]
    return value


def _cut(text: str) -> str:
    if len(text) <= _SHORT_CHARACTERS:
        return text
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= LONGEST_TEXT_BYTES:
        return text
    return encoded[:LONGEST_TEXT_BYTES].decode("utf-8", "ignore") + f"… ({len(encoded)} bytes)"
