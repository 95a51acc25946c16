"""The cluster at one instant: an immutable snapshot, with numpy columns built once.

Row ``i`` of every column is ``snapshot.nodes[i]``. Numbers come from nodes, which are not trusted: columns clamp them
to a sane range, so a node that lies harms its own placements only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from operator import attrgetter
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int8]
Rows = npt.NDArray[np.intp]
Key = TypeVar("Key")

LARGEST = 2**60
"""Columns are clamped to this; ``Needs`` clamps needs to twice as much, so what exceeds it never fits."""

TIER_ABSENT, IMAGE_ABSENT, IMAGE_PREPARING, IMAGE_READY = range(4)


class Unschedulable(StrEnum):
    """Why a node takes no new work."""

    CORDONED = "cordoned"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeView:
    """One node as the scheduler sees it.

    ``tiers`` maps a tier to its images and whether each is ready; ``tiers_absent`` says why a tier is missing;
    ``holds`` are data names (``data://NAME``) and artifact digests present there; ``warm`` counts idle sandboxes by
    (tier, image); ``gpu_memory_bytes`` is per device; ``wait_seconds`` is how long an assignment would queue on the
    node before it starts. A node that is not ``schedulable`` and does not say why counts as cordoned.
    """

    id: str
    name: str
    tiers: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    cpu_milli_free: int
    cpu_milli_total: int
    memory_free: int
    memory_total: int
    slots_free: int
    slots_total: int
    gpu_free: int = 0
    gpu_total: int = 0
    gpu_memory_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    holds: frozenset[str] = frozenset()
    schedulable: bool = True
    unschedulable: Unschedulable | None = None
    bandwidth_bytes_per_second: float = 125_000_000.0
    wait_seconds: float = 0.0
    warm: Mapping[tuple[str, str | None], int] = field(default_factory=dict)
    tiers_absent: Mapping[str, str] = field(default_factory=dict)


def _ints(values: Iterable[int]) -> Ints:
    listed = list(values)
    try:
        column = np.array(listed, dtype=np.int64)
    except OverflowError:
        column = np.array([max(0, min(value, LARGEST)) for value in listed], dtype=np.int64)
    return np.clip(column, 0, LARGEST)


def _floats(values: Iterable[float], *, low: float, high: float, unknown: float) -> Floats:
    column = np.array([float(value) for value in values], dtype=np.float64)
    column[np.isnan(column)] = unknown
    return np.clip(column, low, high)


_AMOUNTS = attrgetter(
    *("cpu_milli_free", "memory_free", "slots_free", "gpu_free"),
    *("cpu_milli_total", "memory_total", "slots_total", "gpu_total", "gpu_memory_bytes"),
)


@dataclass(frozen=True)
class Snapshot:
    """All nodes at one instant, in a fixed order: ties between equal nodes go to the first."""

    nodes: tuple[NodeView, ...]

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def _amounts(self) -> tuple[Ints, ...]:
        """Every amount, one column each in the order of ``_AMOUNTS``: one pass over the nodes instead of nine."""
        listed = list(map(_AMOUNTS, self.nodes))
        try:
            table = np.array(listed, dtype=np.int64)
        except OverflowError:
            table = np.array([[max(0, min(value, LARGEST)) for value in row] for row in listed], dtype=np.int64)
        columns = table.reshape(len(listed), 9).T.copy()
        np.clip(columns, 0, LARGEST, out=columns)
        # Free capacity never exceeds the total, whatever the node says.
        np.minimum(columns[:4], columns[4:8], out=columns[:4])
        return tuple(columns)

    @property
    def free(self) -> tuple[Ints, ...]:
        """Four columns: free CPU in milli-CPU, memory in bytes, slots, GPUs; each at most the total."""
        return self._amounts[:4]

    @property
    def cpu_total(self) -> Ints:
        return self._amounts[4]

    @property
    def memory_total(self) -> Ints:
        return self._amounts[5]

    @property
    def slots_total(self) -> Ints:
        return self._amounts[6]

    @property
    def gpu_total(self) -> Ints:
        return self._amounts[7]

    @property
    def gpu_memory(self) -> Ints:
        return self._amounts[8]

    @cached_property
    def shares(self) -> tuple[Floats, Floats, Floats, Floats]:
        """What one GPU, milli-CPU, byte of memory and slot are of each node's total."""
        gpu, cpu, memory, slots = (1.0 / np.maximum(total, 1) for total in self.totals)
        return gpu, cpu, memory, slots

    @property
    def totals(self) -> tuple[Ints, Ints, Ints, Ints]:
        """GPUs, CPU, memory, slots."""
        return self.gpu_total, self.cpu_total, self.memory_total, self.slots_total

    @cached_property
    def bandwidth(self) -> Floats:
        return _floats((n.bandwidth_bytes_per_second for n in self.nodes), low=1.0, high=1e12, unknown=1.0)

    @cached_property
    def wait_seconds(self) -> Floats:
        return _floats((node.wait_seconds for node in self.nodes), low=0.0, high=1e9, unknown=1e9)

    @cached_property
    def unschedulable(self) -> tuple[tuple[int, Unschedulable], ...]:
        """Rows that take no new work, each with why."""
        return tuple(
            (row, node.unschedulable or Unschedulable.CORDONED)
            for row, node in enumerate(self.nodes)
            if not node.schedulable
        )

    @cached_property
    def _masks(self) -> dict[tuple[str, ...], Bools]:
        return {}

    @cached_property
    def _readiness(self) -> dict[tuple[str, str | None], Codes]:
        return {}

    @cached_property
    def _warm(self) -> dict[tuple[str, str | None], Ints]:
        return {}

    @cached_property
    def _holders(self) -> dict[str, list[int]]:
        return _index((key, row) for row, node in enumerate(self.nodes) for key in node.holds)

    @cached_property
    def _labelled(self) -> dict[tuple[str, str], list[int]]:
        return _index((pair, row) for row, node in enumerate(self.nodes) for pair in node.labels.items())

    def holders(self, key: str) -> Bools:
        """Which nodes hold this data name or digest."""
        mask = self._masks.get(("holds", key))
        if mask is None:
            mask = self._masks["holds", key] = _mask(len(self), self._holders.get(key, ()))
        return mask

    def labelled(self, label: str, value: str) -> Bools:
        """Which nodes carry this label with this value."""
        mask = self._masks.get(("label", label, value))
        if mask is None:
            mask = self._masks["label", label, value] = _mask(len(self), self._labelled.get((label, value), ()))
        return mask

    def readiness(self, tier: str, image: str | None) -> Codes:
        """Per node ``TIER_ABSENT``, ``IMAGE_ABSENT``, ``IMAGE_PREPARING`` or ``IMAGE_READY``."""
        column = self._readiness.get((tier, image))
        if column is None:
            column = np.array([_readiness(node, tier, image) for node in self.nodes], dtype=np.int8)
            self._readiness[tier, image] = column
        return column

    def warm(self, tier: str, image: str | None) -> Ints:
        """Idle sandboxes of this tier and image on each node."""
        column = self._warm.get((tier, image))
        if column is None:
            column = self._warm[tier, image] = _ints(node.warm.get((tier, image), 0) for node in self.nodes)
        return column


def _readiness(node: NodeView, tier: str, image: str | None) -> int:
    images = node.tiers.get(tier)
    if images is None:
        return TIER_ABSENT
    if image is None:
        return IMAGE_READY
    ready = images.get(image)
    if ready is None:
        return IMAGE_ABSENT
    return IMAGE_READY if ready else IMAGE_PREPARING


def _mask(length: int, rows: Sequence[int]) -> Bools:
    mask = np.zeros(length, dtype=np.bool_)
    mask[list(rows)] = True
    return mask


def _index(pairs: Iterable[tuple[Key, int]]) -> dict[Key, list[int]]:
    index: dict[Key, list[int]] = {}
    for key, row in pairs:
        index.setdefault(key, []).append(row)
    return index
