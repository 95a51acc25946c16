"""Capacity during one ``plan`` call: starts as the snapshot's free columns, and each reservation takes from it.

CPU, memory and slots are amounts. GPUs are devices, each given to one demand: the smallest that will do goes first, so
that the large ones are left for who needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scheduler.cluster import LARGEST, Floats, GpuView, Ints, Rows, Snapshot
from scheduler.demand import Demand


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """A demand's amounts, clamped so that column arithmetic cannot overflow."""

    cpu_milli: int
    memory_bytes: int
    gpu: int
    gpu_memory_bytes: int

    @classmethod
    def of(cls, demand: Demand) -> Needs:
        most = 2 * LARGEST
        return cls(
            cpu_milli=min(demand.cpu_milli, most),
            memory_bytes=min(demand.memory_bytes, most),
            gpu=min(demand.gpu, most),
            gpu_memory_bytes=min(demand.gpu_memory_bytes, most),
        )

    def amounts(self) -> tuple[int, int, int, int]:
        """In the order of ``Columns``."""
        return self.gpu, self.cpu_milli, self.memory_bytes, 1


Columns = tuple[Ints, Ints, Ints, Ints]
"""GPUs that will do, CPU, memory, slots."""


def shortage(needs: Needs, columns: Columns, rows: Rows) -> Floats:
    """Per row, what it lacks as a share of the need, summed over resources: 0 where it lacks nothing."""
    share = np.zeros(len(rows), dtype=np.float64)
    for need, column in zip(needs.amounts(), columns, strict=True):
        if need:
            share += np.maximum(need - column[rows], 0) / need
    return share


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """A node kept for a demand that does not fit there yet: ``amounts`` (CPU, memory, slots) and devices taken out of
    what is free."""

    row: int
    demand: Demand
    amounts: tuple[int, int, int]
    devices: tuple[GpuView, ...] = ()

    def gpus(self, memory_bytes: int) -> int:
        """How many of the devices have at least this much memory."""
        return sum(one.memory_bytes >= memory_bytes for one in self.devices)


class Ledger:
    """What is left on each node. ``changes`` lists touched rows in order, so readers can catch up cheaply."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.changes: list[int] = []
        self.held: Hold | None = None
        self._snapshot = snapshot
        self._warm: dict[tuple[str, str | None], Ints] = {}
        self._gpus: dict[int, Ints] = {}
        self._devices: dict[int, list[GpuView]] = {}

    def warm(self, tier: str, image: str | None) -> Ints:
        """Idle sandboxes left of this tier and image, per node."""
        column = self._warm.get((tier, image))
        if column is None:
            column = self._warm[tier, image] = self._snapshot.warm(tier, image).copy()
        return column

    @cached_property
    def cpu(self) -> Ints:
        """Columns are copied, and built by the snapshot, only when a demand asks for them."""
        return self._snapshot.cpu_free.copy()

    @cached_property
    def memory(self) -> Ints:
        return self._snapshot.memory_free.copy()

    @cached_property
    def slots(self) -> Ints:
        return self._snapshot.slots_free.copy()

    def gpus(self, memory_bytes: int) -> Ints:
        """Devices left with at least this much memory, per node."""
        column = self._gpus.get(memory_bytes)
        if column is None:
            column = self._gpus[memory_bytes] = self._snapshot.gpus_of(memory_bytes, free=True).copy()
            for row, devices in self._devices.items():
                column[row] = sum(one.memory_bytes >= memory_bytes for one in devices)
        return column

    def columns(self, needs: Needs) -> Columns:
        """What is left."""
        return self.gpus(needs.gpu_memory_bytes), self.cpu, self.memory, self.slots

    def room(self, row: int, needs: Needs) -> int:
        """How many such demands still fit on the node."""
        room = int(self.slots[row])
        if needs.cpu_milli:
            room = min(room, int(self.cpu[row]) // needs.cpu_milli)
        if needs.memory_bytes:
            room = min(room, int(self.memory[row]) // needs.memory_bytes)
        if needs.gpu:
            room = min(room, int(self.gpus(needs.gpu_memory_bytes)[row]) // needs.gpu)
        return room

    def reserve(
        self, row: int, needs: Needs, count: int, tier: str | None, image: str | None
    ) -> list[tuple[GpuView, ...]]:
        """Take ``count`` times the needs; the devices of each. The caller has checked ``room``."""
        self.slots[row] -= count
        if needs.cpu_milli:
            self.cpu[row] -= count * needs.cpu_milli
        if needs.memory_bytes:
            self.memory[row] -= count * needs.memory_bytes
        if tier is not None:
            warm = self.warm(tier, image)
            warm[row] = max(0, int(warm[row]) - count)
        self.changes.append(row)
        if not needs.gpu:
            return [()] * count
        devices = self._take(row, count * needs.gpu, needs.gpu_memory_bytes)
        return [devices[first : first + needs.gpu] for first in range(0, len(devices), needs.gpu)]

    def hold(self, row: int, needs: Needs, demand: Demand) -> Hold:
        """Keep the node for a demand that lacks something there: all that is free of what it lacks, and its full need
        of the rest. Others may use what is left over, which cannot delay it."""
        gpus = min(needs.gpu, int(self.gpus(needs.gpu_memory_bytes)[row]))
        devices = self._take(row, gpus, needs.gpu_memory_bytes)
        taken = []
        for need, column in zip(needs.amounts()[1:], (self.cpu, self.memory, self.slots), strict=True):
            amount = min(need, int(column[row]))
            column[row] -= amount
            taken.append(amount)
        cpu, memory, slots = taken
        self.held = Hold(row=row, demand=demand, amounts=(cpu, memory, slots), devices=devices)
        self.changes.append(row)
        return self.held

    def _take(self, row: int, count: int, memory_bytes: int) -> tuple[GpuView, ...]:
        """The smallest free devices that will do, in the node's own order among equals."""
        if not count:
            return ()
        left = self._devices.get(row)
        if left is None:
            left = [one for one in self._snapshot.nodes[row].gpus if one.free]
        fitting = sorted((one for one in left if one.memory_bytes >= memory_bytes), key=lambda one: one.memory_bytes)
        taken = tuple(fitting[:count])
        chosen = {one.id for one in taken}
        self._devices[row] = [one for one in left if one.id not in chosen]
        for least, column in self._gpus.items():
            column[row] -= sum(one.memory_bytes >= least for one in taken)
        return taken
