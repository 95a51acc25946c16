"""``host:port`` of private addresses that HTTP tools may reach: how they are written. Standard library only."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

FORM = "HOST:PORT, several with commas, such as 127.0.0.1:8919,db.internal:8080"


def parse(text: str) -> tuple[str, ...]:
    """The hosts as calls name them: lower case, IPv6 without brackets. Also from a JSON list. Raises ``ValueError``."""
    if text.lstrip().startswith("["):
        try:
            listed = json.loads(text)
        except ValueError:
            listed = None
        if isinstance(listed, list) and all(isinstance(one, str) for one in listed):
            return tuple(_one(one) for one in listed)
    return tuple(_one(one) for one in text.split(",") if one.strip())


def _one(text: str) -> str:
    text = text.strip()
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.netloc != text or parts.username is not None or any(map(str.isspace, text)):
        raise ValueError(f"{text!r} is not {FORM}")
    return f"{host}:{port}"
