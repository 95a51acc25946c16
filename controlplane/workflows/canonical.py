"""One text for one JSON value: sorted keys, no spaces, UTF-8. Digests and text interpolation use it."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """The canonical text. Raises ``ValueError`` for NaN and infinities, ``TypeError`` for what is not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical text, lower-case hex. Lone surrogates are kept distinct, never an error."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()
