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
from typing import NamedTuple, TypeVar

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


class GpuView(NamedTuple):
    """One device, or one slice of it: what is given out whole. ``free`` means that nobody has it."""

    id: str
    memory_bytes: int
    free: bool = True
    fake: bool = False


class Release(NamedTuple):
    """What comes free on a node in so many seconds, as far as can be told. ``gpu_memory``: of each device."""

    seconds: float
    cpu_milli: int = 0
    memory_bytes: int = 0
    slots: int = 1
    gpu_memory: tuple[int, ...] = ()


class ModelView(NamedTuple):
    """A model that a node serves: the seconds that loading it took, and how many requests wait for each slot."""

    load_seconds: float | None = None
    queued: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeView:
    """One node as the scheduler sees it.

    ``tiers`` maps a tier to its images and whether each is ready; ``tiers_absent`` says why a tier is missing;
    ``holds`` are data names (``data://NAME``), artifact digests and its own ``node:ID``; ``warm`` counts idle sandboxes
    by (tier, image); ``wait_seconds`` is how long an assignment would queue on the node before it starts; ``releases``
    say when what runs there ends; ``models`` are those it serves. A node that is not ``schedulable`` and does not say
    why counts as cordoned.
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
    gpus: tuple[GpuView, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    holds: frozenset[str] = frozenset()
    schedulable: bool = True
    unschedulable: Unschedulable | None = None
    bandwidth_bytes_per_second: float = 125_000_000.0
    wait_seconds: float = 0.0
    warm: Mapping[tuple[str, str | None], int] = field(default_factory=dict)
    tiers_absent: Mapping[str, str] = field(default_factory=dict)
    releases: tuple[Release, ...] = ()
    models: Mapping[str, ModelView] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """All nodes at one instant, in a fixed order: ties between equal nodes go to the first.

    ``starts`` are measured seconds of a sandbox's start by (tier, image), where there are any.
    """

    nodes: tuple[NodeView, ...]
    starts: Mapping[tuple[str, str | None], float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.nodes)

    def _amounts(self, name: str) -> Ints:
        values, count = map(attrgetter(name), self.nodes), len(self.nodes)
        try:
            column = np.fromiter(values, dtype=np.int64, count=count)
        except OverflowError:
            column = np.array([max(0, min(getattr(node, name), LARGEST)) for node in self.nodes], dtype=np.int64)
        return np.clip(column, 0, LARGEST)

    def _floats(self, name: str, *, low: float, high: float, unknown: float) -> Floats:
        column = np.fromiter(map(attrgetter(name), self.nodes), dtype=np.float64, count=len(self.nodes))
        column[np.isnan(column)] = unknown
        return np.clip(column, low, high)

    @cached_property
    def cpu_total(self) -> Ints:
        return self._amounts("cpu_milli_total")

    @cached_property
    def memory_total(self) -> Ints:
        return self._amounts("memory_total")

    @cached_property
    def slots_total(self) -> Ints:
        return self._amounts("slots_total")

    @cached_property
    def gpu_total(self) -> Ints:
        return np.fromiter(map(len, map(attrgetter("gpus"), self.nodes)), dtype=np.int64, count=len(self.nodes))

    @cached_property
    def gpus_real(self) -> Bools:
        """Which nodes have a GPU that exists."""
        real = [any(not gpu.fake for gpu in node.gpus) for node in self.nodes]
        return np.array(real, dtype=np.bool_)

    @cached_property
    def has_releases(self) -> bool:
        """Whether any node says when what runs there ends."""
        return any(map(attrgetter("releases"), self.nodes))

    @cached_property
    def _gpus(self) -> tuple[Rows, Ints, Bools]:
        """Of every device: the row it is on, its memory, whether it is free."""
        found = [
            (row, max(0, min(gpu.memory_bytes, LARGEST)), gpu.free)
            for row in np.flatnonzero(self.gpu_total).tolist()
            for gpu in self.nodes[row].gpus
        ]
        rows, memory, free = zip(*found, strict=True) if found else ((), (), ())
        return np.array(rows, dtype=np.intp), np.array(memory, dtype=np.int64), np.array(free, dtype=np.bool_)

    def gpus_of(self, memory_bytes: int, *, free: bool) -> Ints:
        """Devices with at least this much memory on each node: the free ones, or all. Shared: do not write into it."""
        column = self._gpu_counts.get((memory_bytes, free))
        if column is None:
            rows, memory, is_free = self._gpus
            wanted = memory >= memory_bytes
            if free:
                wanted &= is_free
            column = self._gpu_counts[memory_bytes, free] = np.bincount(rows[wanted], minlength=len(self)).astype(
                np.int64
            )
        return column

    @cached_property
    def _gpu_counts(self) -> dict[tuple[int, bool], Ints]:
        return {}

    @cached_property
    def cpu_free(self) -> Ints:
        """Free capacity never exceeds the total, whatever the node says."""
        return np.minimum(self._amounts("cpu_milli_free"), self.cpu_total)

    @cached_property
    def memory_free(self) -> Ints:
        return np.minimum(self._amounts("memory_free"), self.memory_total)

    @cached_property
    def slots_free(self) -> Ints:
        return np.minimum(self._amounts("slots_free"), self.slots_total)

    @cached_property
    def cpu_share(self) -> Floats:
        """What one milli-CPU is of each node's total; likewise the next three."""
        return _share(self.cpu_total)

    @cached_property
    def memory_share(self) -> Floats:
        return _share(self.memory_total)

    @cached_property
    def slots_share(self) -> Floats:
        return _share(self.slots_total)

    @cached_property
    def gpu_share(self) -> Floats:
        return _share(self.gpu_total)

    def totals(self, gpu_memory_bytes: int) -> tuple[Ints, Ints, Ints, Ints]:
        """GPUs of at least this memory, CPU, memory, slots."""
        return self.gpus_of(gpu_memory_bytes, free=False), self.cpu_total, self.memory_total, self.slots_total

    @cached_property
    def bandwidth(self) -> Floats:
        return self._floats("bandwidth_bytes_per_second", low=1.0, high=1e12, unknown=1.0)

    @cached_property
    def wait_seconds(self) -> Floats:
        return self._floats("wait_seconds", low=0.0, high=1e9, unknown=1e9)

    @cached_property
    def unschedulable(self) -> tuple[tuple[int, Unschedulable], ...]:
        """Rows that take no new work, each with why."""
        takes = np.fromiter(map(attrgetter("schedulable"), self.nodes), dtype=np.bool_, count=len(self.nodes))
        rows = np.flatnonzero(~takes).tolist()
        return tuple((row, self.nodes[row].unschedulable or Unschedulable.CORDONED) for row in rows)

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

    def serving(self, model: str) -> Bools:
        """Which nodes serve this model."""
        mask = self._masks.get(("model", model))
        if mask is None:
            rows = [row for row, node in enumerate(self.nodes) if model in node.models]
            mask = self._masks["model", model] = _mask(len(self), rows)
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
            counts = [max(0, min(node.warm.get((tier, image), 0), LARGEST)) for node in self.nodes]
            column = self._warm[tier, image] = np.array(counts, dtype=np.int64)
        return column


def _share(total: Ints) -> Floats:
    share: Floats = 1.0 / np.maximum(total, 1)
    return share


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
