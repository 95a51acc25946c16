"""Every node's verdict and cost for one shape of demand, kept current while a ``plan`` call reserves capacity.

Built once per shape with column arithmetic; afterwards only nodes that a reservation touched are computed again, so a
batch of identical demands costs little more than its bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.cluster import Rows, Snapshot
from scheduler.demand import Demand
from scheduler.explanation import CODES, NUMBER, Candidate, Explanation
from scheduler.feasibility import CAPACITY, capacity_filter_at, capacity_filters, fixed_filters, tier_choice
from scheduler.ledger import Ledger, Needs, shortage
from scheduler.scoring import WARM_SECONDS, Packing, cold_seconds, fixed_terms, start_column

NOWHERE = float("inf")
TOP = 3
FULL = tuple(NUMBER[code] for code in CAPACITY)


class Scoreboard:
    """Verdicts and costs of one shape against one ledger."""

    def __init__(self, snapshot: Snapshot, ledger: Ledger, demand: Demand) -> None:
        self.needs = Needs.of(demand)
        self._snapshot = snapshot
        self._ledger = ledger
        self._image = demand.image
        self._options = demand.tier_options()
        self._choice, self.readiness = tier_choice(snapshot, demand)
        self._packing = Packing(snapshot, self.needs)
        self._terms = fixed_terms(snapshot, demand)
        self._fixed = np.zeros(len(snapshot), dtype=np.float64)
        for term in self._terms.values():
            self._fixed += term
        self._passed = fixed_filters(snapshot, demand, self.needs, self.readiness, self._choice)
        self._recompute()

    def _recompute(self) -> None:
        self.blocked = capacity_filters(self._ledger, self.needs, self._passed)
        self._counts = np.bincount(self.blocked, minlength=len(CODES)).tolist()
        cost = self._fixed
        if self._options:
            cost = cost + start_column(self._snapshot, self._ledger, self._options, self._image, self._choice)
        cost = cost + self._packing.column(self._ledger)
        self._cost = np.where(self.blocked == 0, cost, NOWHERE)
        self._seen = len(self._ledger.changes)

    def _catch_up(self) -> None:
        """Bring nodes that were reserved on since the last call up to date."""
        changes = self._ledger.changes
        if len(changes) - self._seen > max(8, len(self._snapshot) // 8):
            self._recompute()
            return
        for row in changes[self._seen :]:
            if self.blocked[row]:
                continue  # capacity only shrinks within a call
            verdict = capacity_filter_at(self._ledger, self.needs, row)
            if verdict:
                self.blocked[row] = verdict
                self._counts[0] -= 1
                self._counts[verdict] += 1
                self._cost[row] = NOWHERE
            else:
                cost = float(self._fixed[row])
                if self._options:
                    cost += self._start_at(row)
                self._cost[row] = cost + self._packing.at(self._ledger, row)
        self._seen = len(changes)

    def cheapest(self) -> int:
        """Row of the cheapest node that fits now, the first among equals; ``-1`` when none does."""
        self._catch_up()
        return int(self._cost.argmin()) if self._counts[0] else -1

    @property
    def eligible(self) -> Rows:
        """Rows that could take the demand, were they empty and large enough."""
        return np.flatnonzero(self._passed == 0)

    def tier_at(self, row: int) -> str | None:
        """The tier this node would use."""
        return self._options[int(self._choice[row])] if self._options else None

    def uniform_room(self, row: int) -> int:
        """How many such demands fit on the node before its start cost changes."""
        room = self._ledger.room(row, self.needs)
        tier = self.tier_at(row)
        if tier is not None:
            warm = int(self._ledger.warm(tier, self._image)[row])
            if warm:
                return min(room, warm)
        return room

    def cost_at(self, row: int) -> float:
        """What a node costs that fits."""
        return float(self._cost[row])

    def full_rows(self, below: float, most: int) -> list[int]:
        """Nodes without room now that could take the demand once emptied, and would cost less than that then."""
        full = (self._passed == 0) & np.isin(self.blocked, FULL) & (self._fixed < below)
        rows = np.flatnonzero(full)
        if not rows.size:
            return []
        rows = rows[shortage(self.needs, self._snapshot.totals(self.needs.gpu_memory_bytes), rows) == 0.0]
        rows = rows[np.argsort(self._fixed[rows], kind="stable")[:most]]
        return [
            row for row in rows.tolist() if self._fixed[row] + (self._start_at(row) if self._options else 0) < below
        ]

    def candidate(self, row: int, wait_seconds: float) -> Candidate:
        """What a node without room would cost, once it has some."""
        terms = {"wait": wait_seconds} | {name: float(term[row]) for name, term in self._terms.items()}
        terms["wait"] = wait_seconds + (float(self._terms["wait"][row]) if "wait" in self._terms else 0.0)
        if self._options:
            terms["sandbox_start"] = self._start_at(row)
        return Candidate(node=self._snapshot.nodes[row].id, cost_seconds=sum(terms.values()), terms=terms)

    def explanation(self, busy: Sequence[Candidate] = ()) -> Explanation:
        """The decision as it stands now."""
        cost = self._cost
        fitting = self._counts[0]
        top: list[tuple[int, float]] = []
        while len(top) < min(TOP, fitting):
            row = int(cost.argmin())
            top.append((row, float(cost[row])))
            cost[row] = NOWHERE
        for row, value in top:
            cost[row] = value
        return Explanation(
            candidates=len(self._snapshot),
            filtered={CODES[number]: count for number, count in enumerate(self._counts) if count and number},
            top=tuple(self._candidate(row) for row, _ in top),
            busy=tuple(busy[:TOP]),
        )

    def _start_at(self, row: int) -> float:
        tier = self._options[int(self._choice[row])]
        return (
            WARM_SECONDS
            if self._ledger.warm(tier, self._image)[row] > 0
            else cold_seconds(self._snapshot, tier, self._image)
        )

    def _candidate(self, row: int) -> Candidate:
        terms = {name: float(term[row]) for name, term in self._terms.items()}
        if self._options:
            terms["sandbox_start"] = self._start_at(row)
        terms["packing"] = self._packing.at(self._ledger, row)
        return Candidate(node=self._snapshot.nodes[row].id, cost_seconds=sum(terms.values()), terms=terms)
