"""The decision for plain tool calls on a small cluster, without columns: the same answers, ten times sooner.

Building columns and boards costs some tens of microseconds, however few the nodes. A tool call that asks for no more
than a slot, CPU or memory needs none of it. A property test holds this to what boards answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.cluster import LARGEST, NodeView, Unschedulable
from scheduler.demand import Demand
from scheduler.explanation import CODES, Candidate, Explanation, ReasonCode
from scheduler.scoring import GPU_SPARE_SECONDS, PACKING_SECONDS

NODES_MOST = 8
"""Above this, columns are about as fast."""

TOP = 3
Fit = tuple[float, int, dict[str, float]]


def alike_and_plain(demands: Sequence[Demand]) -> bool:
    """Whether all ask for the same, and for nothing but a slot, CPU and memory on any node."""
    first = demands[0]
    cpu, memory, priority = first.cpu_milli, first.memory_bytes, first.priority
    for one in demands:
        if one.tier is not None or one.cpu_milli != cpu or one.memory_bytes != memory or one.priority != priority:
            return False
        if one.labels or one.inputs or one.near or one.near_models or one.gpu or one.gpu_memory_bytes:
            return False
        if one.image or one.tiers_allowed or one.starving:
            return False
    return True


def quick(nodes: Sequence[NodeView], demand: Demand, count: int) -> list[tuple[int, int, Explanation]] | None:
    """Rows that take ``count`` such demands in order, how many each, and why; ``None`` unless all find a place."""
    cpu, memory = min(demand.cpu_milli, 2 * LARGEST), min(demand.memory_bytes, 2 * LARGEST)
    waits = spares = False
    rows = []
    for node in nodes:
        row = _Row(node, cpu, memory)
        rows.append(row)
        waits = waits or row.wait > 0
        spares = spares or bool(node.gpus)
    chunks: list[tuple[int, int, Explanation]] = []
    while count:
        fits: list[Fit] = []
        blocked: list[ReasonCode] = []
        for number, row in enumerate(rows):
            verdict = row.verdict()
            if verdict is None:
                terms = row.terms(waits=waits, spares=spares)
                fits.append((sum(terms.values()), number, terms))
            else:
                blocked.append(verdict)
        if not fits:
            return None
        fits.sort()
        best = fits[0][1]
        taken = min(count, rows[best].room())
        top = [Candidate(node=nodes[number].id, cost_seconds=cost, terms=terms) for cost, number, terms in fits[:TOP]]
        filtered = {code: blocked.count(code) for code in CODES if code in blocked} if blocked else {}
        chunks.append((best, taken, Explanation(candidates=len(nodes), filtered=filtered, top=tuple(top))))
        rows[best].take(taken)
        count -= taken
    return chunks


class _Row:
    """One node's free capacity against one demand, with the arithmetic of the columns."""

    __slots__ = (
        "cpu",
        "cpu_each",
        "cpu_total",
        "memory",
        "memory_each",
        "memory_total",
        "node",
        "slots",
        "slots_total",
        "wait",
    )

    def __init__(self, node: NodeView, cpu_each: int, memory_each: int) -> None:
        self.node = node
        self.cpu = self.memory = self.cpu_total = self.memory_total = 0
        self.cpu_each, self.memory_each = cpu_each, memory_each
        self.slots_total = max(0, min(node.slots_total, LARGEST))
        self.slots = max(0, min(node.slots_free, self.slots_total))
        if self.cpu_each:
            self.cpu_total = max(0, min(node.cpu_milli_total, LARGEST))
            self.cpu = max(0, min(node.cpu_milli_free, self.cpu_total))
        if self.memory_each:
            self.memory_total = max(0, min(node.memory_total, LARGEST))
            self.memory = max(0, min(node.memory_free, self.memory_total))
        wait = node.wait_seconds
        if wait:
            wait = 1e9 if wait != wait else max(0.0, min(float(wait), 1e9))
        self.wait = wait

    def verdict(self) -> ReasonCode | None:
        """The first filter that excludes the node."""
        if not self.node.schedulable:
            return ReasonCode((self.node.unschedulable or Unschedulable.CORDONED).value)
        if self.cpu < self.cpu_each:
            return ReasonCode.CPU
        if self.memory < self.memory_each:
            return ReasonCode.MEMORY
        return ReasonCode.SLOTS if self.slots < 1 else None

    def terms(self, *, waits: bool, spares: bool) -> dict[str, float]:
        """What the demand costs here; a term that is nought on every node is left out."""
        left, used = (self.slots - 1) * (1.0 / max(self.slots_total, 1)), 1
        if self.cpu_each:
            left, used = left + (self.cpu - self.cpu_each) * (1.0 / max(self.cpu_total, 1)), used + 1
        if self.memory_each:
            left, used = left + (self.memory - self.memory_each) * (1.0 / max(self.memory_total, 1)), used + 1
        terms: dict[str, float] = {"wait": self.wait} if waits else {}
        if spares:
            terms["gpu_spare"] = GPU_SPARE_SECONDS if self.node.gpus else 0.0
        terms["packing"] = left * (PACKING_SECONDS / used)
        return terms

    def room(self) -> int:
        """How many such demands fit."""
        room = self.slots
        if self.cpu_each:
            room = min(room, self.cpu // self.cpu_each)
        return min(room, self.memory // self.memory_each) if self.memory_each else room

    def take(self, count: int) -> None:
        self.slots -= count
        self.cpu -= count * self.cpu_each
        self.memory -= count * self.memory_each
