"""Waiting for a full node that is better placed, against moving to one that is free: both in seconds.

A full node costs what it would cost if it were free, and the time until it has room: from when what runs there is
expected to end (``Release``), and from who waits for it already. Where that is the cheapest by more than
``WORTH_SECONDS``, a demand that has patience waits, and its claim makes the node's next room later for those behind it.

Estimates can be wrong. ``Patience`` bounds what a wrong one costs: from the first estimate on, and never anew, a
demand waits that long and some slack, and then takes the cheapest node that is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.cluster import Release, Snapshot
from scheduler.explanation import Candidate
from scheduler.ledger import Ledger, Needs
from scheduler.scoreboard import Scoreboard

WORTH_SECONDS = 0.1
"""Less is not worth another round of planning."""
BUSY_MOST = 8
"""Full nodes that are looked at for one demand, the cheapest first."""
UNBOUNDED_SECONDS = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """Until when a demand may wait for a better node; instants are seconds of one clock."""

    SLACK_SHARE = 0.25
    SLACK_SECONDS = 1.0

    until: float

    @classmethod
    def of(cls, now: float, estimate_seconds: float) -> Patience:
        """From the first decision to wait."""
        return cls(until=now + estimate_seconds * (1 + cls.SLACK_SHARE) + cls.SLACK_SECONDS)

    def left(self, now: float) -> float:
        """Seconds that it may wait still; 0: no more."""
        return max(0.0, self.until - now)


@dataclass(frozen=True, kw_only=True, slots=True)
class Busy:
    """A full node, what it would cost with the wait for it, and the wait."""

    row: int
    wait_seconds: float
    candidate: Candidate


class Delay:
    """When full nodes will have room, during one ``plan`` call."""

    def __init__(self, snapshot: Snapshot, ledger: Ledger) -> None:
        self._snapshot = snapshot
        self._ledger = ledger
        self._claims: dict[int, list[tuple[float, float | None, Needs]]] = {}
        self._placed: dict[int, list[Release]] = {}

    def busy(self, board: Scoreboard, best_free: int) -> list[Busy]:
        """Full nodes that would be cheaper than the best free one but for the wait, the cheapest with it first."""
        found: list[Busy] = []
        if not self._snapshot.has_releases:
            return found
        for row in board.full_rows(board.cost_at(best_free) - WORTH_SECONDS, BUSY_MOST):
            wait = self._wait(row, board.needs)
            if wait < UNBOUNDED_SECONDS:
                found.append(Busy(row=row, wait_seconds=wait, candidate=board.candidate(row, wait)))
        return sorted(found, key=lambda one: (one.candidate.cost_seconds, one.row))

    def claim(self, row: int, needs: Needs, wait_seconds: float, expected_seconds: float | None) -> None:
        """A demand waits for this node: it takes its room then, and gives it back after ``expected_seconds``."""
        self._claims.setdefault(row, []).append((wait_seconds, expected_seconds, needs))

    def placed(self, row: int, needs: Needs, count: int, expected_seconds: float | None) -> None:
        """Demands were placed here in this call; they end when they are expected to, or nobody knows when."""
        if expected_seconds is not None:
            self._placed.setdefault(row, []).extend([_release(needs, expected_seconds)] * count)

    def _wait(self, row: int, needs: Needs) -> float:
        """Seconds until there is room, none of it claimed; ``UNBOUNDED_SECONDS`` when that cannot be told.

        Nobody overtakes an earlier claim, so those are over when this demand starts.
        """
        ledger, least = self._ledger, needs.gpu_memory_bytes
        room = [int(ledger.gpus(least)[row]), int(ledger.cpu[row]), int(ledger.memory[row]), int(ledger.slots[row])]
        changes = [(one.seconds, _amounts(one, least), 1) for one in self._snapshot.nodes[row].releases]
        changes += [(one.seconds, _amounts(one, least), 1) for one in self._placed.get(row, ())]
        earliest = 0.0
        for start, expected, claimed in self._claims.get(row, ()):
            earliest = max(earliest, start)
            changes.append((start, claimed.amounts(), -1))
            if expected is not None:
                changes.append((start + expected, claimed.amounts(), 1))
        # At one instant, what comes free comes before what is claimed.
        for seconds, amounts, sign in sorted(changes, key=lambda one: (one[0], -one[2])):
            if seconds > earliest and _fits(needs, room):
                return earliest
            earliest = max(earliest, seconds)
            room = [have + sign * amount for have, amount in zip(room, amounts, strict=True)]
        return earliest if _fits(needs, room) else UNBOUNDED_SECONDS


def _fits(needs: Needs, room: list[int]) -> bool:
    return all(have >= need for have, need in zip(room, needs.amounts(), strict=True) if need)


def _amounts(release: Release, gpu_memory_bytes: int) -> tuple[int, int, int, int]:
    gpus = sum(memory >= gpu_memory_bytes for memory in release.gpu_memory)
    return gpus, release.cpu_milli, release.memory_bytes, release.slots


def _release(needs: Needs, seconds: float) -> Release:
    return Release(
        seconds=seconds,
        cpu_milli=needs.cpu_milli,
        memory_bytes=needs.memory_bytes,
        gpu_memory=(needs.gpu_memory_bytes,) * needs.gpu,
    )
