"""Which replica was sent which beginnings of prompts: a bounded index over chained hashes of the prompt's blocks.

A block's hash covers all that stands before it, so the longest known beginning is found by walking from the start.
The chain begins with the tenant: equal prompts of two tenants share nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from hashlib import blake2b

BLOCK_BYTES = 256
"""About 64 tokens."""
BLOCKS_MOST = 256
ENTRIES_MOST = 65_536


def chain(tenant: str, model: str, prompt: bytes) -> tuple[bytes, ...]:
    """One hash for each whole block of the first 64 KiB."""
    last = blake2b(f"{tenant}\0{model}".encode(), digest_size=16).digest()
    hashes = []
    for start in range(0, min(len(prompt), BLOCKS_MOST * BLOCK_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        last = blake2b(prompt[start : start + BLOCK_BYTES], key=last, digest_size=16).digest()
        hashes.append(last)
    return tuple(hashes)


class PrefixIndex:
    """Bounded: what was used least recently is forgotten first."""

    def __init__(self, entries_most: int = ENTRIES_MOST) -> None:
        self._holders: OrderedDict[bytes, dict[str, None]] = OrderedDict()
        self._most = entries_most

    def __len__(self) -> int:
        return len(self._holders)

    def matched(self, hashes: Sequence[bytes], replicas: Collection[str]) -> dict[str, int]:
        """How many blocks of this prompt each of ``replicas`` was sent before; those that were sent none are left
        out."""
        found: dict[str, int] = {}
        holding = set(replicas)
        for index, one in enumerate(hashes):
            holders = self._holders.get(one)
            if holders is None:
                break
            holding.intersection_update(holders)
            if not holding:
                break
            self._holders.move_to_end(one)
            found.update(dict.fromkeys(holding, index + 1))
        return found

    def sent(self, hashes: Sequence[bytes], replica: str) -> None:
        """This prompt went to ``replica``."""
        for one in hashes:
            self._holders.setdefault(one, {})[replica] = None
            self._holders.move_to_end(one)
        while len(self._holders) > self._most:
            self._holders.popitem(last=False)
