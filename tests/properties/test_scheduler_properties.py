"""What must hold for every cluster and every queue."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.cluster import GpuView, ModelView, NodeView, Release, Snapshot, Unschedulable
from scheduler.delay import WORTH_SECONDS
from scheduler.demand import DataNeed, Demand
from scheduler.explanation import ReasonCode
from scheduler.planner import Placement, by_boards, plan

KEYS = ("data://a", "data://b", "sha256:1")
IMAGES = ("python", "python-data")
TIERS = ("wasm", "jail")
amounts = st.integers(0, 6)


@st.composite
def node_views(draw: st.DrawFn) -> NodeView:
    totals = {name: draw(amounts) for name in ("cpu", "memory", "slots")}
    free = {name: draw(st.integers(0, total)) for name, total in totals.items()}
    fake = draw(st.sampled_from((True, True, True, False)))
    return NodeView(
        id="",
        name="",
        tiers=draw(st.dictionaries(st.sampled_from(TIERS), st.dictionaries(st.sampled_from(IMAGES), st.booleans()))),
        cpu_milli_free=free["cpu"],
        cpu_milli_total=totals["cpu"],
        memory_free=free["memory"],
        memory_total=totals["memory"],
        slots_free=free["slots"],
        slots_total=totals["slots"],
        gpus=tuple(  # of one machine, all exist or none does
            GpuView(f"gpu-{index}", memory, is_free, fake=fake)
            for index, (memory, is_free) in enumerate(draw(st.lists(st.tuples(amounts, st.booleans()), max_size=6)))
        ),
        labels=draw(st.dictionaries(st.just("zone"), st.sampled_from("xy"))),
        holds=draw(st.frozensets(st.sampled_from(KEYS))),
        schedulable=draw(st.sampled_from((True, True, True, False))),
        unschedulable=draw(st.sampled_from((None, *Unschedulable))),
        bandwidth_bytes_per_second=draw(st.sampled_from((1e6, 1e8))),
        wait_seconds=draw(st.sampled_from((0.0, 0.5))),
        releases=tuple(
            Release(seconds, cpu, memory, slots, (gpu,) * (gpu > 0))
            for seconds, cpu, memory, slots, gpu in draw(
                st.lists(st.tuples(st.floats(0, 10), amounts, amounts, st.integers(0, 1), amounts), max_size=3)
            )
        ),
        models=draw(st.sampled_from(({}, {"small": ModelView(2.0)}))),
        warm=draw(
            st.dictionaries(st.tuples(st.sampled_from(TIERS), st.sampled_from(IMAGES)), st.integers(0, 3), max_size=2)
        ),
    )


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    views = draw(st.lists(node_views(), max_size=6))
    return Snapshot(tuple(replace(view, id=f"n{i}", name=f"node {i}") for i, view in enumerate(views)))


@st.composite
def shapes(draw: st.DrawFn) -> Demand:
    return Demand(
        id="",
        tier=draw(st.sampled_from((None, "auto", "wasm", "jail"))),
        image=draw(st.sampled_from((None, *IMAGES))),
        cpu_milli=draw(st.integers(0, 3)),
        memory_bytes=draw(st.integers(0, 3)),
        gpu=draw(st.sampled_from((0, 0, 0, 1, 2))),
        gpu_memory_bytes=draw(st.integers(0, 3)),
        labels=draw(st.sampled_from(({}, {}, {"zone": "x"}))),
        inputs=draw(
            st.sampled_from(
                (
                    (),
                    (),
                    (DataNeed(key="data://a", size_bytes=10**7),),
                    (DataNeed(key="data://b", pinned=True),),
                )
            )
        ),
        near=draw(st.sampled_from(((), (DataNeed(key="sha256:1", size_bytes=10**8),)))),
        near_models=draw(st.sampled_from(((), (), ("small",)))),
        patience_seconds=draw(st.sampled_from((0.0, 0.5, 100.0))),
        expected_seconds=draw(st.sampled_from((None, 0.2, 5.0))),
        priority=draw(st.integers(0, 1)),
        tiers_allowed=draw(st.sampled_from(((), (), ("jail",)))),
    )


@st.composite
def queues(draw: st.DrawFn) -> tuple[Demand, ...]:
    """Queues with repeats, both adjacent and interleaved, as maps over shards make them."""
    kinds = draw(st.lists(shapes(), min_size=1, max_size=3))
    order = draw(st.lists(st.integers(0, len(kinds) - 1), max_size=20))
    starving = draw(st.sets(st.integers(0, 19), max_size=3))
    return tuple(
        replace(kinds[kind], id=f"d{position}", starving=position in starving, tenant=draw(st.sampled_from("st")))
        for position, kind in enumerate(order)
    )


def may_hold(view: NodeView, asked: Demand, placement: Placement) -> bool:
    """The filters, written the slow and obvious way."""
    if not view.schedulable or any(view.labels.get(key) != value for key, value in asked.labels.items()):
        return False
    if any(need.pinned and need.key not in view.holds for need in asked.inputs):
        return False
    own = {gpu.id: gpu for gpu in view.gpus}
    if len({gpu.id for gpu in placement.gpus}) != asked.gpu:
        return False
    if any(own.get(gpu.id) != gpu or gpu.memory_bytes < asked.gpu_memory_bytes for gpu in placement.gpus):
        return False
    if asked.tier is None:
        return placement.tier is None
    if asked.gpu and any(not gpu.fake for gpu in view.gpus):
        return False  # neither wasm nor jail reaches one
    if asked.tiers_allowed and placement.tier not in asked.tiers_allowed:
        return False
    if asked.tier != "auto" and placement.tier != asked.tier:
        return False
    images = view.tiers.get(placement.tier or "", None)
    return images is not None and (asked.image is None or images.get(asked.image, False))


@settings(max_examples=200, deadline=None)
@given(clusters(), queues())
def test_plans_are_safe_total_and_deterministic(snapshot: Snapshot, queue: tuple[Demand, ...]) -> None:
    result = plan(snapshot, queue)
    assert result == plan(Snapshot(snapshot.nodes), queue)

    outcomes = [placement.demand for placement in result.placements] + [waiting.demand for waiting in result.waiting]
    assert sorted(outcomes) == sorted(asked.id for asked in queue)
    assert all(waiting.reasons for waiting in result.waiting)

    views = {view.id: view for view in snapshot.nodes}
    by_id = {asked.id: asked for asked in queue}
    used: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    given: list[tuple[str, str]] = []
    for placement in result.placements:
        asked = by_id[placement.demand]
        assert may_hold(views[placement.node], asked, placement)
        for position, amount in enumerate((asked.cpu_milli, asked.memory_bytes, 1)):
            used[placement.node][position] += amount
        assert all(gpu.free for gpu in placement.gpus)
        given += [(placement.node, gpu.id) for gpu in placement.gpus]
    assert len(set(given)) == len(given), "a device was given out twice"
    for node_id, taken in used.items():
        view = views[node_id]
        free = (view.cpu_milli_free, view.memory_free, view.slots_free)
        assert all(amount <= limit for amount, limit in zip(taken, free, strict=True))


@settings(max_examples=200, deadline=None)
@given(clusters(), queues())
def test_explanations_add_up(snapshot: Snapshot, queue: tuple[Demand, ...]) -> None:
    result = plan(snapshot, queue)
    for placement in result.placements:
        why = placement.explanation
        fitting = why.candidates - sum(why.filtered.values())
        assert len(why.top) == min(3, fitting) >= 1
        assert why.top[0].node == placement.node
        assert [top.cost_seconds for top in why.top] == sorted(top.cost_seconds for top in why.top)
        for top in why.top:
            assert math.isclose(top.cost_seconds, sum(top.terms.values()))
            assert all(term >= 0 for term in top.terms.values())
        for busy in why.busy:
            assert busy.node not in {top.node for top in why.top}
            assert math.isclose(busy.cost_seconds, sum(busy.terms.values()))
    by_id = {asked.id: asked for asked in queue}
    for waiting in result.waiting:
        if waiting.better_seconds is not None:
            why = waiting.explanation
            assert [reason.code for reason in waiting.reasons] == [ReasonCode.WAITING_FOR_BETTER_NODE]
            assert why.top and waiting.reasons[0].nodes == why.candidates - sum(why.filtered.values())
            assert why.busy[0].cost_seconds + WORTH_SECONDS < why.top[0].cost_seconds
            assert waiting.better_seconds <= by_id[waiting.demand].patience_seconds
            assert waiting.better_seconds <= why.busy[0].terms["wait"]
            continue
        assert waiting.explanation.candidates == sum(waiting.explanation.filtered.values()) == len(snapshot)
        assert sum(reason.nodes for reason in waiting.reasons) == len(snapshot)


def _after(snapshot: Snapshot, asked: Demand, placement: Placement) -> Snapshot:
    """The cluster once the placement holds its capacity, built from scratch."""

    def less(view: NodeView) -> NodeView:
        if view.id != placement.node:
            return view
        warm = dict(view.warm)
        if placement.tier is not None:
            key = (placement.tier, placement.image)
            warm[key] = max(0, warm.get(key, 0) - 1)
        return replace(
            view,
            cpu_milli_free=view.cpu_milli_free - asked.cpu_milli,
            memory_free=view.memory_free - asked.memory_bytes,
            gpus=tuple(gpu._replace(free=gpu.free and gpu not in placement.gpus) for gpu in view.gpus),
            slots_free=view.slots_free - 1,
            warm=warm,
        )

    return Snapshot(tuple(less(view) for view in snapshot.nodes))


@settings(max_examples=200, deadline=None)
@given(clusters(), queues())
def test_a_batch_is_placed_as_one_by_one(snapshot: Snapshot, queue: tuple[Demand, ...]) -> None:
    """Batching is only speed: planning each demand alone on what the earlier ones left gives the same nodes."""
    queue = tuple(replace(asked, starving=False) for asked in queue)  # a hold ends with its call
    together = {placement.demand: (placement.node, placement.tier) for placement in plan(snapshot, queue).placements}
    alone = {}
    for asked in sorted(queue, key=lambda item: -item.priority):
        for placement in plan(snapshot, [asked]).placements:
            alone[asked.id] = (placement.node, placement.tier)
            snapshot = _after(snapshot, asked, placement)
    assert together == alone


@settings(max_examples=200, deadline=None)
@given(clusters(), node_views(), shapes())
def test_another_node_never_makes_a_demand_wait(snapshot: Snapshot, extra: NodeView, asked: Demand) -> None:
    more = Snapshot((*snapshot.nodes, replace(extra, id="extra", name="extra")))
    assert len(plan(more, [asked]).placements) >= len(plan(snapshot, [asked]).placements)


@settings(max_examples=300, deadline=None)
@given(clusters(), st.integers(0, 3), st.integers(0, 3), st.integers(1, 12))
def test_plain_tool_calls_on_few_nodes_are_decided_as_boards_decide(
    snapshot: Snapshot, cpu: int, memory: int, count: int
) -> None:
    queue = [Demand(id=f"d{position}", cpu_milli=cpu, memory_bytes=memory) for position in range(count)]
    assert plan(snapshot, queue) == by_boards(Snapshot(snapshot.nodes), queue)


@settings(max_examples=100, deadline=None)
@given(clusters(), queues())
def test_an_explanations_text_is_its_json(snapshot: Snapshot, queue: tuple[Demand, ...]) -> None:
    result = plan(snapshot, queue)
    for why in [one.explanation for one in result.placements] + [one.explanation for one in result.waiting]:
        assert json.loads(why.text) == why.to_json()


def _lacks(view: NodeView, asked: Demand) -> tuple[int, ...]:
    free = (view.cpu_milli_free, view.memory_free, sum(gpu.free for gpu in view.gpus), view.slots_free)
    return tuple(max(0, need - left) for need, left in zip(_amounts(asked), free, strict=True))


def _amounts(asked: Demand) -> tuple[int, int, int, int]:
    return asked.cpu_milli, asked.memory_bytes, asked.gpu, 1


@st.composite
def contests(draw: st.DrawFn) -> tuple[Snapshot, Demand, tuple[Demand, ...]]:
    """A demand that one node could take once emptied, and tool calls that compete with it."""
    views = [replace(view, slots_total=view.slots_total + 1) for view in draw(clusters()).nodes]
    host = replace(draw(node_views()), id="host", schedulable=True, slots_total=20, slots_free=20, cpu_milli_total=9)
    host = replace(host, cpu_milli_free=draw(st.integers(0, 8)))
    head = Demand(
        id="head",
        starving=True,
        priority=1,
        cpu_milli=9,
        memory_bytes=draw(st.integers(0, host.memory_total)),
        gpu=draw(st.integers(0, len(host.gpus))),
    )
    amounts = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1))
    queue = [
        Demand(id=f"d{position}", cpu_milli=cpu, memory_bytes=memory, gpu=gpu)
        for position, (cpu, memory, gpu) in enumerate(draw(st.lists(amounts, max_size=12)))
    ]
    return Snapshot((*views, host)), head, tuple(queue)


@settings(max_examples=200, deadline=None)
@given(contests())
def test_nothing_placed_later_adds_to_what_a_held_node_lacks(
    contest: tuple[Snapshot, Demand, tuple[Demand, ...]],
) -> None:
    snapshot, head, queue = contest
    result = plan(snapshot, (*queue, head))
    assert result.held == ("head", "host")
    before = next(view for view in snapshot.nodes if view.id == result.held[1])
    by_id = {asked.id: asked for asked in queue}
    after = snapshot
    for placement in result.placements:
        after = _after(after, by_id[placement.demand], placement)
    assert any(_lacks(before, head))
    assert _lacks(next(view for view in after.nodes if view.id == before.id), head) == _lacks(before, head)


@st.composite
def floods(draw: st.DrawFn) -> tuple[list[list[int]], tuple[int, int], list[tuple[int, int, int]]]:
    """Nodes (CPU, memory), a large demand that fits one of them, and small ones with how long each runs."""
    nodes = draw(st.lists(st.lists(st.integers(2, 8), min_size=2, max_size=2), min_size=1, max_size=3))
    host = draw(st.sampled_from(nodes))
    large = (draw(st.integers(1, host[0])), draw(st.integers(1, host[1])))
    small = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 5))
    return nodes, large, draw(st.lists(small, min_size=1, max_size=12))


@settings(max_examples=150, deadline=None)
@given(floods())
def test_an_endless_stream_of_small_demands_does_not_starve_a_large_one(
    flood: tuple[list[list[int]], tuple[int, int], list[tuple[int, int, int]]],
) -> None:
    nodes, (cpu, memory), smalls = flood
    large = Demand(id="large", cpu_milli=cpu, memory_bytes=memory, starving=True)
    running: list[tuple[int, int, Demand]] = []  # (node, tick it ends, demand)
    ends_on_held: dict[int, int] = {}
    for tick in range(1000):
        running = [one for one in running if one[1] > tick]
        left = [
            [node[part] - sum(_amounts(one[2])[part] for one in running if one[0] == row) for part in (0, 1)]
            for row, node in enumerate(nodes)
        ]
        assert all(amount >= 0 for free in left for amount in free)
        stream = [Demand(id=f"{tick}.{i}", cpu_milli=small[0], memory_bytes=small[1]) for i, small in enumerate(smalls)]
        result = plan(_simple(nodes, left), [*stream, large] if tick >= 3 else stream)
        placed = {one.demand: int(one.node) for one in result.placements}
        if "large" in placed:
            return
        if result.held is not None:
            held = int(result.held[1])
            # What ran there when the hold began bounds the wait, as long as the hold stays.
            ends_on_held = {held: ends_on_held.get(held, max(one[1] for one in running if one[0] == held))}
            assert tick < ends_on_held[held]
        else:
            assert tick < 3
        for i, asked in enumerate(stream):
            if asked.id in placed:
                running.append((placed[asked.id], tick + smalls[i][2], asked))
    raise AssertionError("the large demand starved")


def _simple(nodes: list[list[int]], left: list[list[int]]) -> Snapshot:
    return Snapshot(
        tuple(
            NodeView(
                id=str(row),
                name=str(row),
                cpu_milli_free=free[0],
                cpu_milli_total=total[0],
                memory_free=free[1],
                memory_total=total[1],
                slots_free=1000,
                slots_total=1000,
            )
            for row, (total, free) in enumerate(zip(nodes, left, strict=True))
        )
    )
