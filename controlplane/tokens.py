"""Bearer tokens: random, prefixed by what they are for, stored only as their SHA-256.

sk_  API key      sj_  lets a node join      sn_  a node's, for one boot      sg_  a gateway process
"""

from __future__ import annotations

import hashlib
import secrets


def make_token(prefix: str) -> str:
    """A fresh token: ``prefix``, an underscore and 256 random bits."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def hash_token(token: str) -> str:
    """What is stored. The token is 256 random bits, so a plain SHA-256 cannot be searched."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
