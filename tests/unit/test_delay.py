"""Waiting for a full node against moving to a free one: what is chosen, what is said, and what bounds the wait."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.cluster import ModelView, NodeView, Release, Snapshot
from scheduler.delay import Patience
from scheduler.demand import DataNeed, Demand
from scheduler.explanation import ReasonCode
from scheduler.planner import Plan, plan

GB = 10**9
NEAR = (DataNeed(key="data://big", size_bytes=GB),)


def node(name: str, **changes: Any) -> NodeView:
    """A gigabyte takes eight seconds to any of them."""
    view: dict[str, Any] = {
        "id": name,
        "name": name,
        "cpu_milli_free": 1000,
        "cpu_milli_total": 1000,
        "memory_free": GB,
        "memory_total": GB,
        "slots_free": 1,
        "slots_total": 1,
    }
    return NodeView(**(view | changes))


def full(name: str, *ends: float, **changes: Any) -> NodeView:
    """Full, with work that ends so soon."""
    releases = tuple(Release(seconds=seconds, cpu_milli=1000 // len(ends)) for seconds in ends)
    return node(name, **({"cpu_milli_free": 0, "slots_free": 0, "releases": releases} | changes))


def asks(id: str = "d", **changes: Any) -> Demand:
    return Demand(id=id, **({"near": NEAR, "patience_seconds": 3600.0} | changes))


def placed(result: Plan) -> dict[str, str]:
    return {one.demand: one.node for one in result.placements}


HOLDER = {"holds": frozenset({"data://big"})}


def test_a_wait_shorter_than_the_move_is_waited_and_told_in_seconds() -> None:
    result = plan(Snapshot((full("a", 3.0, **HOLDER), node("b"))), [asks()])
    (waiting,) = result.waiting
    assert waiting.better_seconds == 3.0
    (reason,) = waiting.reasons
    assert reason.code is ReasonCode.WAITING_FOR_BETTER_NODE
    assert (reason.permanent, reason.nodes) == (False, 1)
    assert reason.message == (
        "node a has room in about 3.0 s and costs 3.0 s with that wait; the cheapest that is free, node b, costs 8.0 s"
    )
    (busy,) = waiting.explanation.busy
    assert (busy.node, busy.terms["wait"], busy.terms["near"]) == ("a", 3.0, 0.0)
    assert waiting.explanation.top[0].terms["near"] == 8.0


def test_a_wait_longer_than_the_move_is_not_waited_and_still_told() -> None:
    (placement,) = plan(Snapshot((full("a", 9.0, **HOLDER), node("b"))), [asks()]).placements
    assert placement.node == "b"
    (busy,) = placement.explanation.busy
    assert (busy.node, busy.terms["wait"]) == ("a", 9.0)


@pytest.mark.parametrize(
    ("demand", "why"),
    [
        (asks(patience_seconds=2.0), "it has less patience than that"),
        (asks(near=()), "places are alike for it"),
        (asks(cpu_milli=1001), "the full node could never take it"),
    ],
)
def test_nobody_waits_for_a_better_node(demand: Demand, why: str) -> None:
    large = node("b", cpu_milli_free=2000, cpu_milli_total=2000)
    assert placed(plan(Snapshot((full("a", 3.0, **HOLDER), large)), [demand])) == {"d": "b"}, why


def test_a_full_node_whose_end_nobody_knows_is_not_waited_for() -> None:
    nodes = (full("a", 3.0, releases=(), **HOLDER), full("c", 3.0), node("b"))
    assert placed(plan(Snapshot(nodes), [asks()])) == {"d": "b"}


def test_each_who_waits_makes_the_wait_longer_for_the_next() -> None:
    nodes = (full("a", 3.0, **HOLDER), node("b", slots_free=9, slots_total=9))
    queue = [asks(str(number), cpu_milli=100, expected_seconds=3.0) for number in range(4)]
    result = plan(Snapshot(nodes), queue)
    assert [one.better_seconds for one in result.waiting] == [3.0, 6.0]
    assert placed(result) == {"2": "b", "3": "b"}, "9 s of waiting are more than 8 s of moving"


def test_nobody_waits_behind_one_whose_time_is_unknown() -> None:
    nodes = (full("a", 3.0, **HOLDER), node("b"))
    result = plan(Snapshot(nodes), [asks("1"), asks("2")])
    assert [one.demand for one in result.waiting] == ["1"]
    assert placed(result) == {"2": "b"}


def test_those_placed_in_the_same_plan_are_waited_for_if_their_time_is_known() -> None:
    nodes = (node("a", slots_total=2, releases=(Release(seconds=5.0),), **HOLDER), node("b"))
    result = plan(Snapshot(nodes), [asks("1", expected_seconds=2.0), asks("2", expected_seconds=2.0)])
    assert placed(result) == {"1": "a"}
    assert [one.better_seconds for one in result.waiting] == [2.0]
    result = plan(Snapshot(nodes), [asks("1"), asks("2")])
    assert [one.better_seconds for one in result.waiting] == [5.0]


def test_as_much_must_come_free_as_is_asked_for() -> None:
    nodes = (full("a", 1.0, 2.0, 5.0, slots_free=1, slots_total=4, **HOLDER), node("b"))
    (waiting,) = plan(Snapshot(nodes), [asks(cpu_milli=600)]).waiting
    assert waiting.better_seconds == 2.0
    nodes = (nodes[0], node("b"))
    assert plan(Snapshot(nodes), [asks(cpu_milli=900)]).waiting[0].better_seconds == 5.0


def test_near_counts_each_thing_once() -> None:
    need = DataNeed(key="sha256:1", size_bytes=GB)
    (placement,) = plan(Snapshot((node("a"),)), [asks(inputs=(need,), near=(need, need))]).placements
    terms = placement.explanation.top[0].terms
    assert (terms["move"], terms["near"]) == (8.0, 0.0)


def test_near_a_model_costs_its_load_where_it_is_not_served_and_more_while_requests_queue() -> None:
    nodes = (node("a"), node("b", models={"small": ModelView(load_seconds=20.0, queued=0.5)}))
    (placement,) = plan(Snapshot(nodes), [asks(near=(), near_models=("small",))]).placements
    terms = {one.node: one.terms["model"] for one in placement.explanation.top}
    assert terms == {"b": 0.0, "a": 30.0}
    stuck = (node("a"), node("b", models={"small": ModelView(load_seconds=1.0, queued=1e9)}))
    (placement,) = plan(Snapshot(stuck), [asks(near=(), near_models=("small",))]).placements
    assert max(one.terms["model"] for one in placement.explanation.top) == 10.0


def test_a_measured_start_takes_the_place_of_the_table() -> None:
    view = node("a", tiers={"wasm": {"python": True}})
    demand = asks(near=(), tier="wasm", image="python")
    costs = []
    for starts in ({}, {("wasm", "python"): 0.125}):
        (placement,) = plan(Snapshot((view,), starts=starts), [demand]).placements
        costs.append(placement.explanation.top[0].terms["sandbox_start"])
    assert costs == [0.010, 0.125]


def test_patience_ends_once_and_is_never_renewed() -> None:
    patience = Patience.of(100.0, 8.0)
    assert patience.left(100.0) == 11.0
    assert patience.left(110.5) == 0.5
    assert patience.left(112.0) == patience.left(1e9) == 0.0
