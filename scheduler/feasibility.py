"""Filter: which nodes can take a demand, and the first filter that excludes each of the others.

A filter column holds 0 for "fits" and otherwise the number of a ``ReasonCode``. Filters that load cannot change come
first (schedulable, labels, tier, image, data, GPU model), capacity last, so a node that fails on capacity would fit
once emptied, unless the demand exceeds its total.
"""

from __future__ import annotations

import numpy as np

from scheduler.cluster import IMAGE_READY, TIER_ABSENT, Codes, Snapshot
from scheduler.demand import GPU_TIERS, Demand
from scheduler.explanation import NUMBER, ReasonCode
from scheduler.ledger import Ledger, Needs

CAPACITY = (ReasonCode.GPU, ReasonCode.CPU, ReasonCode.MEMORY, ReasonCode.SLOTS)
NOTHING = (0, 0, 0)


def tier_choice(snapshot: Snapshot, demand: Demand) -> tuple[Codes, Codes]:
    """Per node the position in ``tier_options()`` to use, and the best readiness any option reached."""
    options = demand.tier_options()
    choice = np.zeros(len(snapshot), dtype=np.int8)
    best = np.full(len(snapshot), TIER_ABSENT, dtype=np.int8)
    for position, tier in enumerate(options):
        readiness = snapshot.readiness(tier, demand.image)
        better = readiness > best
        choice[better] = position
        best = np.maximum(best, readiness)
    return choice, best


def fixed_filters(snapshot: Snapshot, demand: Demand, needs: Needs, readiness: Codes, choice: Codes) -> Codes:
    """Filters that no reservation changes. Written from the last to the first, so that the first one is kept."""
    blocked = np.zeros(len(snapshot), dtype=np.int8)
    if needs.gpu and needs.gpu_memory_bytes:
        blocked[snapshot.gpus_of(needs.gpu_memory_bytes, free=False) == 0] = NUMBER[ReasonCode.GPU]
    if needs.gpu and demand.tier is not None:
        reach = [place for place, tier in enumerate(demand.tier_options()) if tier in GPU_TIERS]
        blocked[snapshot.gpus_real & ~np.isin(choice, reach)] = NUMBER[ReasonCode.GPU_TIER]
    for need in demand.inputs:
        if need.pinned:
            blocked[~snapshot.holders(need.key)] = NUMBER[ReasonCode.DATA_NOT_EXPORTED]
    if demand.tier is not None:
        blocked[readiness < IMAGE_READY] = NUMBER[ReasonCode.IMAGE_NOT_READY]
        blocked[readiness == TIER_ABSENT] = NUMBER[ReasonCode.TIER_UNAVAILABLE]
    for label, value in demand.labels.items():
        blocked[~snapshot.labelled(label, value)] = NUMBER[ReasonCode.LABELS]
    for row, state in snapshot.unschedulable:
        blocked[row] = NUMBER[ReasonCode(state.value)]
    return blocked


def capacity_filters(ledger: Ledger, needs: Needs, fixed: Codes) -> Codes:
    """``fixed``, with capacity filters applied to the nodes that passed it."""
    blocked = np.zeros(len(fixed), dtype=np.int8)
    blocked[ledger.slots < 1] = NUMBER[ReasonCode.SLOTS]
    if needs.memory_bytes:
        blocked[ledger.memory < needs.memory_bytes] = NUMBER[ReasonCode.MEMORY]
    if needs.cpu_milli:
        blocked[ledger.cpu < needs.cpu_milli] = NUMBER[ReasonCode.CPU]
    if needs.gpu:
        blocked[ledger.gpus(needs.gpu_memory_bytes) < needs.gpu] = NUMBER[ReasonCode.GPU]
    if ledger.held is not None and blocked[ledger.held.row]:
        blocked[ledger.held.row] = capacity_filter_at(ledger, needs, ledger.held.row)
    return np.where(fixed > 0, fixed, blocked)


def capacity_filter_at(ledger: Ledger, needs: Needs, row: int) -> int:
    """``capacity_filters`` for one node that passed the fixed filters."""
    verdict = _first_short(ledger, needs, row, NOTHING, 0)
    if verdict and ledger.held is not None and ledger.held.row == row:
        unheld = _first_short(ledger, needs, row, ledger.held.amounts, ledger.held.gpus(needs.gpu_memory_bytes))
        return unheld or NUMBER[ReasonCode.HELD]
    return verdict


def _first_short(ledger: Ledger, needs: Needs, row: int, besides: tuple[int, int, int], gpus: int) -> int:
    cpu, memory, slots = besides
    if needs.gpu and ledger.gpus(needs.gpu_memory_bytes)[row] + gpus < needs.gpu:
        return NUMBER[ReasonCode.GPU]
    if needs.cpu_milli and ledger.cpu[row] + cpu < needs.cpu_milli:
        return NUMBER[ReasonCode.CPU]
    if needs.memory_bytes and ledger.memory[row] + memory < needs.memory_bytes:
        return NUMBER[ReasonCode.MEMORY]
    return NUMBER[ReasonCode.SLOTS] if ledger.slots[row] + slots < 1 else 0
