"""What was measured of work that ended, for estimates of work to come: bounded, in memory, forgotten at a restart.

Times are this process's own, from assignment to report, so that a node cannot make another look busy or slow.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

Key = TypeVar("Key")

SAMPLES = 32
"""The last so many times are kept of each kind of work."""
KINDS_MOST = 4096
STARTS_MOST = 256
START_MOST_SECONDS = 120.0


class Work(NamedTuple):
    """A kind of work: one step of a workflow, in any of its versions and runs."""

    tenant: str
    workflow: str
    pointer: str


class Durations:
    """How long work takes on nodes, by step, by node, and over all."""

    def __init__(self) -> None:
        self._steps: OrderedDict[Work, deque[float]] = OrderedDict()
        self._nodes: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque(maxlen=SAMPLES)

    def record(self, work: Work, node: str, seconds: float) -> None:
        """One attempt ended by itself after so long."""
        self._all.append(seconds)
        for kept in (_kept(self._steps, work), _kept(self._nodes, node)):
            kept.append(seconds)

    def expected(self, work: Work, node: str | None = None) -> float | None:
        """The mean of this step, else of this node, else of all; ``None`` before anything ended."""
        samples = self._steps.get(work) or self._nodes.get(node or "") or self._all
        return statistics.fmean(samples) if samples else None

    def remaining(self, work: Work, node: str, elapsed: float, most: float) -> float:
        """How long an attempt that runs for ``elapsed`` seconds will run on, at most ``most``.

        The mean of what longer ones ran on. Where none was longer, or nothing is known, it is taken to be half way.
        """
        samples = self._steps.get(work) or self._nodes.get(node) or self._all
        longer = [one - elapsed for one in samples if one > elapsed]
        return min(statistics.fmean(longer) if longer else elapsed, max(0.0, most))


class Starts:
    """How long sandboxes take to start, by tier and image.

    Nodes say these, so each counts once however often it speaks: the median of their means.
    """

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str], dict[str, deque[float]]] = OrderedDict()
        self._means: dict[tuple[str, str | None], float] | None = None

    def record(self, node: str, tier: str, image: str, seconds: float) -> None:
        """One sandbox started on this node."""
        if not 0 <= seconds <= START_MOST_SECONDS:
            return
        nodes = self._told.setdefault((tier, image), {})
        nodes.setdefault(node, deque(maxlen=SAMPLES)).append(seconds)
        self._means = None
        while len(self._told) > STARTS_MOST:
            self._told.popitem(last=False)

    def forget(self, node: str) -> None:
        """The node is gone."""
        for nodes in self._told.values():
            nodes.pop(node, None)
        self._means = None

    def means(self) -> Mapping[tuple[str, str | None], float]:
        """Seconds by (tier, image)."""
        if self._means is None:
            self._means = {
                kind: statistics.median(statistics.fmean(samples) for samples in nodes.values())
                for kind, nodes in self._told.items()
                if nodes
            }
        return self._means


def _kept(kept: OrderedDict[Key, deque[float]], key: Key) -> deque[float]:
    samples = kept.get(key)
    if samples is None:
        samples = kept[key] = deque(maxlen=SAMPLES)
        if len(kept) > KINDS_MOST:
            kept.popitem(last=False)
    else:
        kept.move_to_end(key)
    return samples
