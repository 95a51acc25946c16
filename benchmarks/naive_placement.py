"""Placement as one would first write it, to compare with: loops over node objects, no columns, no explanation.

Both reserve as they go. ``first_fit`` takes the first node with room; ``best_fit`` scores every node by the terms that
the benchmark's demands have (GPU spared, share left free), hence chooses what ``scheduler.plan`` chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scheduler.cluster import NodeView
from scheduler.demand import Demand
from scheduler.scoring import GPU_SPARE_SECONDS, PACKING_SECONDS


class _Free:
    __slots__ = ("cpu", "memory", "node", "slots")

    def __init__(self, node: NodeView) -> None:
        self.node, self.slots, self.cpu, self.memory = node, node.slots_free, node.cpu_milli_free, node.memory_free

    def fits(self, demand: Demand) -> bool:
        node = self.node
        return (
            node.schedulable
            and self.slots >= 1
            and self.cpu >= demand.cpu_milli
            and self.memory >= demand.memory_bytes
            and (demand.tier is None or node.tiers.get(demand.tier, {}).get(demand.image or "", False))
            and all(node.labels.get(label) == value for label, value in demand.labels.items())
        )

    def cost(self, demand: Demand) -> float:
        node = self.node
        left = (
            (self.slots - 1) / node.slots_total
            + (self.cpu - demand.cpu_milli) / node.cpu_milli_total
            + (self.memory - demand.memory_bytes) / node.memory_total
        )
        return PACKING_SECONDS * left / 3 + (GPU_SPARE_SECONDS if node.gpus else 0.0)

    def take(self, demand: Demand) -> str:
        self.slots -= 1
        self.cpu -= demand.cpu_milli
        self.memory -= demand.memory_bytes
        return self.node.id


def first_fit(nodes: Sequence[NodeView], demands: Iterable[Demand]) -> list[str]:
    """The node of each demand that fits somewhere."""
    free = [_Free(node) for node in nodes]
    taken = []
    for demand in demands:
        for one in free:
            if one.fits(demand):
                taken.append(one.take(demand))
                break
    return taken


def best_fit(nodes: Sequence[NodeView], demands: Iterable[Demand]) -> list[str]:
    """The node of each demand that fits somewhere."""
    free = [_Free(node) for node in nodes]
    taken = []
    for demand in demands:
        fitting = [one for one in free if one.fits(demand)]
        if fitting:
            costs = [one.cost(demand) for one in fitting]
            taken.append(fitting[costs.index(min(costs))].take(demand))
    return taken
