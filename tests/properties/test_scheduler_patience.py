"""How long steps wait for a better node, whatever was estimated."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.cluster import NodeView, Release, Snapshot
from scheduler.delay import Patience
from scheduler.demand import DataNeed, Demand
from scheduler.planner import plan


@st.composite
def crowds(draw: st.DrawFn) -> tuple[int, list[tuple[float, float]], list[tuple[float, float, int]]]:
    """Slots of the node with the data, what runs there (what is said to remain, what really does), and who comes:
    when, for how long, with how many seconds of data to move."""
    seconds = st.floats(0.1, 20)
    running = draw(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=3))
    comes = st.tuples(st.floats(0, 5), seconds, st.integers(1, 15))
    return len(running), running, draw(st.lists(comes, min_size=1, max_size=6))


@settings(max_examples=150, deadline=None)
@given(crowds(), st.floats(0.2, 3.0))
def test_nobody_waits_for_a_better_node_longer_than_was_estimated_and_some_slack(
    crowd: tuple[int, list[tuple[float, float]], list[tuple[float, float, int]]], error: float
) -> None:
    """However wrong estimates are. The far node always has room, so every wait is for the better one."""
    slots, running, coming = crowd
    ends = [(said, really) for said, really in running]  # on the near node, from time 0
    patience: dict[int, Patience] = {}
    first: dict[int, tuple[float, float]] = {}
    waiting: list[int] = []
    done: set[int] = set()
    for tick in range(2000):
        now = tick * 0.1
        arrived = [one for one in range(len(coming)) if coming[one][0] <= now and one not in done]
        ends = [(said, really) for said, really in ends if really > now]
        near = NodeView(
            id="near",
            name="near",
            cpu_milli_free=0,
            cpu_milli_total=0,
            memory_free=0,
            memory_total=0,
            slots_free=slots - len(ends),
            slots_total=slots,
            holds=frozenset({"sha256:1"}),
            bandwidth_bytes_per_second=1e6,
            releases=tuple(Release(max(0.05, said - now)) for said, _really in ends),
        )
        far = replace(near, id="far", name="far", slots_free=9, slots_total=9, holds=frozenset(), releases=())
        order = [*waiting, *(one for one in arrived if one not in waiting)]
        queue = [
            Demand(
                id=str(one),
                near=(DataNeed(key="sha256:1", size_bytes=coming[one][2] * 10**6),),
                patience_seconds=patience[one].left(now) if one in patience else 3600.0,
                expected_seconds=coming[one][1] * error,
            )
            for one in order
        ]
        result = plan(Snapshot((near, far)), queue)
        assert len(result.placements) + len(result.waiting) == len(queue)
        waiting = []
        for blocked in result.waiting:
            one = int(blocked.demand)
            assert blocked.better_seconds is not None
            waiting.append(one)
            if one not in patience:
                patience[one] = Patience.of(now, blocked.better_seconds)
                first[one] = now, blocked.better_seconds
        for placement in result.placements:
            one = int(placement.demand)
            done.add(one)
            if placement.node == "near":
                ends.append((now + coming[one][1] * error, now + coming[one][1]))
            if one in first:
                began, estimate = first[one]
                slack = estimate * Patience.SLACK_SHARE + Patience.SLACK_SECONDS
                assert now - began <= estimate + slack + 0.2
        assert len(ends) <= slots
        if len(done) == len(coming):
            return
    raise AssertionError("somebody waits for ever")
