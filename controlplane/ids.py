"""Prefixed ids that sort by the time they were made: ``dec_01k…``.

    dec_ | 11 characters: microseconds since 1970 | 15 characters: 75 random bits

The alphabet is Crockford's base32 in lower case: no ``i l o u``, safe in file names and URLs, and its order
is the order of ASCII, so sorting text sorts by time.
"""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Two characters at a time: half the steps of a loop over single ones.
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_RANDOM_BITS = 75


def new_id(prefix: str) -> str:
    """A fresh id: ``prefix``, an underscore, 26 characters. Ids made in one microsecond are in no order."""
    number = (time.time_ns() // 1000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    pairs = [_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)]
    return f"{prefix}_{''.join(pairs)}"
