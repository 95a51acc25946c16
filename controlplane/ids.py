"""Prefixed ids that sort by the time they were made: ``dec_01k…``.

    dec_ | 11 characters: microseconds since 1970 | 15 characters: 75 random bits

The alphabet is Crockford's base32 in lower case: no ``i l o u``, safe in file names and URLs, and its order
is the order of ASCII, so sorting text sorts by time.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Two characters at a time: half the steps of a loop over single ones.
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
# Each byte's low five bits choose a character, all 32 equally often.
_OF_BYTE = bytes(ord(_ALPHABET[byte & 31]) for byte in range(256))
_RANDOM_CHARACTERS = 15


def new_id(prefix: str) -> str:
    """A fresh id: ``prefix``, an underscore, 26 characters. Ids made in one microsecond are in no order."""
    moment = time.time_ns() // 1000
    made = _earlier(moment >> 20) + _PAIRS[moment >> 10 & 1023] + _PAIRS[moment & 1023]
    return f"{prefix}_{made}{os.urandom(_RANDOM_CHARACTERS).translate(_OF_BYTE).decode()}"


@lru_cache(maxsize=4)
def _earlier(seconds: int) -> str:
    # The same for about a second.
    pairs = [_PAIRS[seconds >> shift & 1023] for shift in (20, 10, 0)]
    return _ALPHABET[seconds >> 30 & 31] + "".join(pairs)
