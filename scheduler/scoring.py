"""Score: what placing a demand on a node costs, in seconds.

    cost(n) = wait(n)                                   the node's own queue
            + sum(bytes not held on n) / bandwidth(n)   "move": inputs
            + the same for what it is to be near        "near": each thing once, inputs not again
            + price * load_time * [not served on n]     "model": price = 1 + requests waiting a slot, at most 10
            + sandbox_start(n, tier, image)             warm, measured, or from the table
            + GPU_SPARE_SECONDS                         a step without GPU on a node that has some
            + PACKING_SECONDS * share left free         best fit among near equals

``PACKING_SECONDS`` is the resolution: costs closer than that count as equal and the fuller node wins. What is left
of a tie goes to the first node, never to chance.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scheduler.cluster import Bools, Codes, Floats, Snapshot
from scheduler.demand import Demand
from scheduler.ledger import Ledger, Needs

UNKNOWN_BYTES = 64 * 1024 * 1024
"""Assumed size of an input or a ``near`` name whose size nobody reported."""
MODEL_LOAD_SECONDS = 30.0
"""Assumed of a model whose load nobody has seen."""
PRICE_MOST = 10.0

WARM_SECONDS = 0.002
COLD_SECONDS: Mapping[str, float] = {"wasm": 0.010, "jail": 0.025, "container": 0.250}
OTHER_COLD_SECONDS = 1.0
GPU_SPARE_SECONDS = 1.0
PACKING_SECONDS = 0.001


def cold_seconds(snapshot: Snapshot, tier: str, image: str | None) -> float:
    """What a start that finds no warm sandbox costs: as measured, else as assumed of the tier."""
    measured = snapshot.starts.get((tier, image))
    return COLD_SECONDS.get(tier, OTHER_COLD_SECONDS) if measured is None else measured


def fixed_terms(snapshot: Snapshot, demand: Demand) -> dict[str, Floats]:
    """The terms that no reservation changes; a term that is nought on every node is left out."""
    terms: dict[str, Floats] = {}
    if snapshot.wait_seconds.any():
        terms["wait"] = snapshot.wait_seconds
    if demand.inputs:
        sizes = {need.key: need.size_bytes for need in demand.inputs}
        terms["move"] = _seconds_to_move(snapshot, sizes)
    if demand.near:
        inputs = {need.key for need in demand.inputs}
        terms["near"] = _seconds_to_move(
            snapshot, {need.key: need.size_bytes for need in demand.near if need.key not in inputs}
        )
    if demand.near_models:
        terms["model"] = _seconds_to_load(snapshot, demand.near_models)
    if not demand.gpu and snapshot.gpu_total.any():
        terms["gpu_spare"] = np.where(snapshot.gpu_total > 0, GPU_SPARE_SECONDS, 0.0)
    return terms


def _seconds_to_move(snapshot: Snapshot, sizes: Mapping[str, int | None]) -> Floats:
    missing = np.zeros(len(snapshot), dtype=np.float64)
    for key, size in sizes.items():
        absent: Bools = ~snapshot.holders(key)
        missing[absent] += float(UNKNOWN_BYTES if size is None else max(0, min(size, 2**62)))
    seconds: Floats = missing / snapshot.bandwidth
    return seconds


def _seconds_to_load(snapshot: Snapshot, models: tuple[str, ...]) -> Floats:
    seconds = np.zeros(len(snapshot), dtype=np.float64)
    for model in models:
        serving = snapshot.serving(model)
        found = [snapshot.nodes[row].models[model] for row in np.flatnonzero(serving)]
        loads = [one.load_seconds for one in found if one.load_seconds is not None]
        load = _mean(loads) if loads else MODEL_LOAD_SECONDS
        seconds[~serving] += min(1 + _mean([one.queued for one in found]), PRICE_MOST) * load
    return seconds


def _mean(values: list[float]) -> float:
    """Nodes say these, so they are bounded."""
    return sum(max(0.0, min(one, 3600.0)) for one in values if one == one) / max(len(values), 1)


def start_column(
    snapshot: Snapshot, ledger: Ledger, options: tuple[str, ...], image: str | None, choice: Codes
) -> Floats:
    """Seconds until a sandbox of the chosen tier is there, per node."""
    seconds = np.zeros(len(choice), dtype=np.float64)
    for position, tier in enumerate(options):
        start = np.where(ledger.warm(tier, image) > 0, WARM_SECONDS, cold_seconds(snapshot, tier, image))
        seconds = np.where(choice == position, start, seconds)
    return seconds


class Packing:
    """Share of a node left free after the demand, averaged over the resources it uses (slots always are)."""

    def __init__(self, snapshot: Snapshot, needs: Needs) -> None:
        self._cpu = snapshot.cpu_share if needs.cpu_milli else None
        self._memory = snapshot.memory_share if needs.memory_bytes else None
        self._gpu = snapshot.gpu_share if needs.gpu else None
        self._slots = snapshot.slots_share
        used = 1 + sum(part is not None for part in (self._cpu, self._memory, self._gpu))
        self._weight = PACKING_SECONDS / used
        self._needs = needs

    def column(self, ledger: Ledger) -> Floats:
        """The term for every node; meaningless where the demand does not fit."""
        left: Floats = (ledger.slots - 1) * self._slots
        if self._cpu is not None:
            left = left + (ledger.cpu - self._needs.cpu_milli) * self._cpu
        if self._memory is not None:
            left = left + (ledger.memory - self._needs.memory_bytes) * self._memory
        if self._gpu is not None:
            left = left + (ledger.gpus(self._needs.gpu_memory_bytes) - self._needs.gpu) * self._gpu
        return left * self._weight

    def at(self, ledger: Ledger, row: int) -> float:
        """``column`` for one node, with the same arithmetic."""
        left = (int(ledger.slots[row]) - 1) * float(self._slots[row])
        if self._cpu is not None:
            left += (int(ledger.cpu[row]) - self._needs.cpu_milli) * float(self._cpu[row])
        if self._memory is not None:
            left += (int(ledger.memory[row]) - self._needs.memory_bytes) * float(self._memory[row])
        if self._gpu is not None:
            left += (int(ledger.gpus(self._needs.gpu_memory_bytes)[row]) - self._needs.gpu) * float(self._gpu[row])
        return left * self._weight
