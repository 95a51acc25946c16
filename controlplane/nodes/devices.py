"""Which attempt or model server has which GPU of one node. A device has one holder or none.

The scheduler proposes devices, this ledger disposes: it is asked last, between two awaits, and gives all or nothing.
What the node says of its devices adds and removes them; it never frees one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from dataplane.protocol import GpuDevice


class DeviceLedger:
    """The devices of one node that are held. A holder is an attempt's id, or whatever name a model server goes by."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}
        self._leaving: set[str] = set()

    def holder(self, device: str) -> str | None:
        """Who has it."""
        return self._holders.get(device)

    def held_by(self, holder: str) -> tuple[str, ...]:
        """What this holder has."""
        return tuple(device for device, owner in self._holders.items() if owner == holder)

    def hold(self, holder: str, devices: Iterable[str]) -> bool:
        """Take all of these, or none where another holder has one of them. Asking again for the same is harmless."""
        wanted = list(devices)
        if any(self._holders.get(device, holder) != holder for device in wanted):
            return False
        self._holders.update(dict.fromkeys(wanted, holder))
        self._leaving.discard(holder)
        return True

    def take(
        self, holder: str, devices: Sequence[GpuDevice], count: int, memory_bytes: int = 0
    ) -> tuple[str, ...] | None:
        """Take ``count`` of these that nobody has, each with at least this much memory, the smallest first.

        ``None``, and nothing taken, where fewer are free.
        """
        fitting = [one for one in devices if one.uuid not in self._holders and one.memory_bytes >= memory_bytes]
        if len(fitting) < count:
            return None
        chosen = tuple(one.uuid for one in sorted(fitting, key=lambda one: (one.memory_bytes, one.index))[:count])
        self.hold(holder, chosen)
        return chosen

    def release(self, holder: str) -> bool:
        """The holder has ended. ``True`` if it had devices."""
        freed = self.held_by(holder)
        for device in freed:
            del self._holders[device]
        self._leaving.discard(holder)
        return bool(freed)

    def leave(self, holders: Collection[str]) -> None:
        """These attempts are over for us, but their node has not said so: what they hold stays theirs until it does."""
        self._leaving.update(one for one in holders if one in self._holders.values())

    def left(self, still_there: Collection[str]) -> bool:
        """The node has told what it runs: who was leaving and is not there has left. ``True`` if that freed any."""
        gone = [holder for holder in self._leaving if holder not in still_there]
        for holder in gone:
            self.release(holder)
        return bool(gone)
