"""Placement, case by case: what is chosen, what waits, and what is said about it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scheduler.cluster import GpuView, NodeView, Snapshot, Unschedulable
from scheduler.demand import DataNeed, Demand
from scheduler.explanation import ReasonCode
from scheduler.planner import plan

GIB = 1024**3


def node(name: str, **changes: Any) -> NodeView:
    view: dict[str, Any] = {
        "id": f"id-{name}",
        "name": name,
        "tiers": {"wasm": {"python": True}, "jail": {"python": True}},
        "cpu_milli_free": 4000,
        "cpu_milli_total": 4000,
        "memory_free": 8 * GIB,
        "memory_total": 8 * GIB,
        "slots_free": 16,
        "slots_total": 16,
    }
    return NodeView(**(view | changes))


def gpus(count: int, *, free: int | None = None, memory: int = 0) -> tuple[GpuView, ...]:
    """Declared ones: any tier can have them."""
    left = count if free is None else free
    return tuple(GpuView(f"gpu-{i}", memory, i < left, fake=True) for i in range(count))


def demand(id: str = "d", **changes: Any) -> Demand:
    asked: dict[str, Any] = {"tier": "wasm", "image": "python", "cpu_milli": 1000, "memory_bytes": GIB}
    return Demand(id=id, **(asked | changes))


def chosen(nodes: list[NodeView], asked: Demand) -> str:
    (placement,) = plan(Snapshot(tuple(nodes)), [asked]).placements
    return placement.node.removeprefix("id-")


def refused(nodes: list[NodeView], asked: Demand) -> tuple[ReasonCode, str, str, bool]:
    result = plan(Snapshot(tuple(nodes)), [asked])
    assert result.placements == ()
    (waiting,) = result.waiting
    reason = waiting.reasons[0]
    return reason.code, reason.message, reason.fix, reason.permanent


NEAR_LOGS = (DataNeed(key="data://logs"),)


def test_data_on_a_node_draws_the_step_there() -> None:
    nodes = [node("a"), node("b", holds=frozenset({"data://logs"}))]
    assert chosen(nodes, demand(inputs=(DataNeed(key="data://logs", size_bytes=10**9),))) == "b"
    assert chosen(nodes, demand()) == "a"


def test_near_is_a_preference_and_never_blocks() -> None:
    busy = node("b", holds=frozenset({"data://logs"}), cpu_milli_free=0)
    assert chosen([node("a"), node("b", holds=frozenset({"data://logs"}))], demand(near=NEAR_LOGS)) == "b"
    assert chosen([node("a"), busy], demand(near=NEAR_LOGS)) == "a"
    assert chosen([node("a")], demand(near=(DataNeed(key="data://nowhere"),))) == "a"


def test_moving_bytes_is_compared_with_waiting_in_seconds() -> None:
    holder = node("b", holds=frozenset({"sha256:1"}), wait_seconds=5.0)
    small, large = (
        demand(inputs=(DataNeed(key="sha256:1", size_bytes=size),)) for size in (125_000_000, 1_250_000_000)
    )
    assert chosen([node("a"), holder], small) == "a"
    assert chosen([node("a"), holder], large) == "b"


def test_a_warm_sandbox_wins_and_is_used_once() -> None:
    nodes = (node("a"), node("b", warm={("wasm", "python"): 1}))
    result = plan(Snapshot(nodes), [demand("1"), demand("2")])
    # The second finds no warm sandbox, and of two cold nodes the fuller one is packed.
    assert [placement.node for placement in result.placements] == ["id-b", "id-b"]
    costs = [placement.explanation.top[0].terms["sandbox_start"] for placement in result.placements]
    assert costs == [0.002, 0.010]


def test_the_fuller_node_is_packed_first_then_the_earlier_one() -> None:
    assert chosen([node("a"), node("b", cpu_milli_free=2000)], demand()) == "b"
    assert chosen([node("a"), node("b")], demand()) == "a"


def test_steps_without_gpu_stay_off_gpu_nodes_while_they_can() -> None:
    gpu = node("gpu", gpus=gpus(8, memory=80 * GIB))
    assert chosen([gpu, node("plain")], demand()) == "plain"
    assert chosen([gpu, node("plain", cpu_milli_free=0)], demand()) == "gpu"
    assert chosen([node("plain"), gpu], demand(gpu=8)) == "gpu"


def test_auto_takes_wasm_first_and_jail_where_only_that_is_ready() -> None:
    half = node("a", tiers={"wasm": {"python": False}, "jail": {"python": True}})
    (placement,) = plan(Snapshot((half,)), [demand(tier="auto")]).placements
    assert placement.tier == "jail"
    (placement,) = plan(Snapshot((node("a"),)), [demand(tier="auto")]).placements
    assert placement.tier == "wasm"
    (placement,) = plan(Snapshot((node("a"),)), [demand(tier="auto", tiers_allowed=("jail",))]).placements
    assert placement.tier == "jail"


def test_a_tool_step_needs_no_tier() -> None:
    (placement,) = plan(Snapshot((node("a", tiers={}),)), [demand(tier=None)]).placements
    assert (placement.tier, placement.image) == (None, None)


def test_priority_goes_first_and_equals_keep_their_order() -> None:
    one_slot = Snapshot((node("a", slots_free=2),))
    result = plan(one_slot, [demand("low"), demand("high", priority=5), demand("low2")])
    assert [placement.demand for placement in result.placements] == ["high", "low"]
    assert [waiting.demand for waiting in result.waiting] == ["low2"]


def test_a_large_step_that_waits_does_not_hold_up_a_small_one() -> None:
    result = plan(Snapshot((node("a"),)), [demand("large", cpu_milli=9000), demand("small")])
    assert [placement.demand for placement in result.placements] == ["small"]


def test_alternating_shapes_share_the_same_capacity() -> None:
    queue = [demand(str(i), cpu_milli=1000 if i % 2 else 500) for i in range(8)]
    result = plan(Snapshot((node("a"), node("b", cpu_milli_total=2000, cpu_milli_free=2000))), queue)
    assert len(result.placements) == 8
    taken = {"id-a": 0, "id-b": 0}
    for placement in result.placements:
        taken[placement.node] += 1000 if int(placement.demand) % 2 else 500
    assert taken["id-a"] <= 4000 and taken["id-b"] <= 2000


@pytest.mark.parametrize(
    ("nodes", "asked", "code", "permanent"),
    [
        ([], {}, ReasonCode.NO_NODES, True),
        ([{"schedulable": False}], {}, ReasonCode.CORDONED, True),
        ([{"schedulable": False, "unschedulable": Unschedulable.DRAINING}], {}, ReasonCode.DRAINING, True),
        ([{"schedulable": False, "unschedulable": Unschedulable.LOST}], {}, ReasonCode.LOST, False),
        ([{}], {"labels": {"zone": "x"}}, ReasonCode.LABELS, True),
        ([{"tiers": {"jail": {"python": True}}}], {}, ReasonCode.TIER_UNAVAILABLE, True),
        ([{}], {"tiers_allowed": ("jail",)}, ReasonCode.TIER_UNAVAILABLE, True),
        ([{}], {"image": "python-data"}, ReasonCode.IMAGE_NOT_READY, True),
        ([{"tiers": {"wasm": {"python": False}}}], {}, ReasonCode.IMAGE_NOT_READY, False),
        ([{}], {"inputs": (DataNeed(key="data://x", pinned=True),)}, ReasonCode.DATA_NOT_EXPORTED, True),
        ([{}], {"gpu": 1}, ReasonCode.GPU, True),
        ([{"gpus": gpus(2, free=0)}], {"gpu": 1}, ReasonCode.GPU, False),
        (
            [{"gpus": gpus(1, memory=GIB)}],
            {"gpu": 1, "gpu_memory_bytes": 2 * GIB},
            ReasonCode.GPU,
            True,
        ),
        ([{"cpu_milli_free": 0}], {}, ReasonCode.CPU, False),
        ([{}], {"cpu_milli": 4001}, ReasonCode.CPU, True),
        ([{"memory_free": 0}], {}, ReasonCode.MEMORY, False),
        ([{}], {"memory_bytes": 10**40}, ReasonCode.MEMORY, True),
        ([{"slots_free": 0}], {}, ReasonCode.SLOTS, False),
        ([{"slots_free": 0, "slots_total": 0}], {}, ReasonCode.SLOTS, True),
    ],
)
def test_each_refusal_has_its_code_and_says_whether_waiting_helps(
    nodes: list[dict[str, Any]], asked: dict[str, Any], code: ReasonCode, permanent: bool
) -> None:
    got, message, fix, forever = refused([node("a", **changes) for changes in nodes], demand(**asked))
    assert (got, forever) == (code, permanent)
    assert message and fix


def test_busy_and_too_small_are_told_apart_with_the_nearest_fix() -> None:
    nodes = [node("a", memory_free=GIB), node("b", memory_free=2 * GIB)]
    _, message, fix, _ = refused(nodes, demand(memory_bytes=3 * GIB))
    assert message == (
        "it needs 3 GiB of memory; 2 nodes could take it but lack memory now: node b has 2 GiB free of 8 GiB"
    )
    assert fix == "wait: it would fit on node b with 1 GiB more free; or ask for less"
    _, message, fix, _ = refused(nodes, demand(memory_bytes=9 * GIB, cpu_milli=4000))
    assert message == (
        "it needs 9 GiB of memory, which exceeds what 2 nodes have in total: node a has 1 GiB free of 8 GiB"
    )
    assert fix == "ask for less or join a larger node: it would fit on node a with 1 GiB more"


def test_the_nearest_node_with_too_few_gpus_is_named_with_what_it_has() -> None:
    nodes = [node("a", gpus=gpus(2, free=1)), node("b", gpus=gpus(1))]
    code, message, fix, permanent = refused(nodes, demand(gpu=2))
    assert (code, permanent) == (ReasonCode.GPU, False)
    assert message == "it needs 2 GPUs; 1 node could take it but lacks GPUs now: node a has 1 GPU free of 2"
    assert fix == "wait: it would fit on node a with 1 GPU more free; or ask for less"
    code, message, fix, permanent = refused(nodes, demand(gpu=4))
    assert (code, permanent) == (ReasonCode.GPU, True)
    assert message == "it needs 4 GPUs, which exceeds what 2 nodes have in total: node a has 1 GPU free of 2"
    assert fix == "ask for less or join a larger node: it would fit on node a with 2 GPUs more"


def test_a_gpu_that_exists_goes_to_a_tier_whose_guests_reach_it() -> None:
    tiers = {"wasm": {"python": True}, "container": {"python": True}}
    real = node("a", tiers=tiers, gpus=(GpuView("GPU-1", 80 * GIB),))
    for tier in ("wasm", "auto"):
        code, message, fix, permanent = refused([real], demand(tier=tier, gpu=1))
        assert (code, permanent) == (ReasonCode.GPU_TIER, True)
        assert message == f"1 node with GPUs that no guest of tier {tier} reaches"
        assert fix == "ask for them in sandbox.tier container"
    assert chosen([real], demand(tier="container", gpu=1)) == "a"
    assert chosen([real], demand(tier="wasm")) == "a"


def test_gpu_memory_is_of_each_device() -> None:
    mixed = node(
        "a",
        gpus=tuple(
            GpuView(name, size * GIB, fake=True) for name, size in (("large", 80), ("small", 24), ("other", 24))
        ),
    )
    result = plan(Snapshot((mixed,)), [demand("1", gpu=1), demand("2", gpu=1, gpu_memory_bytes=40 * GIB)])
    assert [[gpu.id for gpu in placement.gpus] for placement in result.placements] == [["small"], ["large"]]
    code, message, fix, permanent = refused([mixed], demand(gpu=2, gpu_memory_bytes=40 * GIB))
    assert (code, permanent) == (ReasonCode.GPU, True)
    assert message == "1 node without 2 GPUs of at least 40 GiB"
    assert fix == "ask for at most 24 GiB per GPU, or join a node with larger ones"


def test_a_missing_tier_repeats_the_nodes_own_reason() -> None:
    bare = node("a", tiers={}, tiers_absent={"jail": "bubblewrap is not installed"})
    assert "bubblewrap is not installed" in refused([bare], demand(tier="jail"))[1]


def test_the_explanation_counts_every_node_once_and_prints_as_json() -> None:
    nodes = (node("a", slots_free=0), node("b", schedulable=False), node("c"), node("d"))
    (placement,) = plan(Snapshot(nodes), [demand()]).placements
    printed = placement.explanation.to_json()
    assert printed["candidates"] == 4
    assert printed["filtered"] == {"cordoned": 1, "slots": 1}
    assert [top.node for top in placement.explanation.top] == ["id-c", "id-d"]


def test_an_explanations_text_is_its_json_whatever_a_node_calls_itself() -> None:
    odd = node("a", id='a"\\\n\u2028ü', gpus=gpus(1), wait_seconds=0.25)
    for asked in (demand(), demand(tier=None), demand(labels={"zone": "x"})):
        result = plan(Snapshot((odd, node("b", slots_free=0))), [asked])
        (why,) = [one.explanation for one in result.placements] + [one.explanation for one in result.waiting]
        assert json.loads(why.text) == why.to_json()


def test_a_node_that_lies_harms_only_itself() -> None:
    liar = node(
        "liar",
        cpu_milli_free=10**40,
        memory_free=-5,
        bandwidth_bytes_per_second=float("nan"),
        wait_seconds=float("nan"),
    )
    assert chosen([liar, node("honest")], demand()) == "honest"


def test_negative_needs_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        demand(cpu_milli=-1)


def test_a_starving_step_has_a_node_held_that_small_ones_leave_alone() -> None:
    nodes = Snapshot((node("a", cpu_milli_free=1000),))
    result = plan(nodes, [demand("small"), demand("run/large", cpu_milli=3000, starving=True)])
    assert (result.placements, result.held) == ((), ("run/large", "id-a"))
    large, small = (waiting.reasons[0] for waiting in result.waiting)
    assert large.message == (
        "it needs 3 CPU; 1 node could take it but lacks CPU now: node a has 1 CPU free of 4 CPU; node a is held for it"
    )
    assert (small.code, small.permanent) == (ReasonCode.HELD, False)
    assert small.message.startswith("node a is held for run/large, which has waited longer")
    assert result.waiting[1].explanation.to_json()["filtered"] == {"held": 1}


def test_another_tenants_step_is_not_told_who_holds_the_node() -> None:
    asked = [demand("run/large", cpu_milli=3000, starving=True, tenant="a")]
    asked += [demand("mine", tenant="a"), demand("theirs", tenant="b")]
    _, mine, theirs = plan(Snapshot((node("a", cpu_milli_free=1000),)), asked).waiting
    assert "run/large" in mine.reasons[0].message
    assert "run/large" not in str(theirs)
    assert "held for a step of another tenant" in theirs.reasons[0].message


def test_what_the_starving_step_would_leave_over_is_still_used() -> None:
    gpu = node("a", cpu_milli_free=3000, gpus=gpus(2, free=1, memory=GIB))
    asked = [demand("large", gpu=2, starving=True), demand("gpu", gpu=1), demand("1"), demand("2"), demand("3")]
    result = plan(Snapshot((gpu,)), asked)
    assert [placement.demand for placement in result.placements] == ["1", "2"]
    assert {waiting.demand: waiting.reasons[0].code for waiting in result.waiting} == {
        "large": ReasonCode.GPU,
        "gpu": ReasonCode.HELD,
        "3": ReasonCode.HELD,
    }


def test_the_node_that_lacks_least_is_held_and_the_others_go_on() -> None:
    nodes = [node("a", cpu_milli_free=1000), node("b", cpu_milli_free=2000), node("small", cpu_milli_total=2000)]
    result = plan(Snapshot(tuple(nodes)), [demand("large", cpu_milli=3000, starving=True), demand("1"), demand("2")])
    assert result.held == ("large", "id-b")
    assert [placement.node for placement in result.placements] == ["id-a", "id-small"]


def test_one_node_is_held_for_the_first_that_could_ever_fit() -> None:
    nodes = (node("a", cpu_milli_free=1000), node("b", cpu_milli_free=500))
    hopeless, first, second = (demand(str(cpu), cpu_milli=cpu, starving=True) for cpu in (9000, 4000, 3000))
    result = plan(Snapshot(nodes), [hopeless, first, second, demand("small", cpu_milli=500)])
    assert result.held == ("4000", "id-a")
    assert [placement.node for placement in result.placements] == ["id-b"]
    assert [waiting.reasons[0].permanent for waiting in result.waiting] == [True, False, False]


def test_no_node_is_held_when_the_starving_step_fits_or_its_node_is_cordoned() -> None:
    starving = demand("large", cpu_milli=3000, starving=True)
    result = plan(Snapshot((node("a"),)), [demand("small"), starving, demand("late")])
    assert result.held is None
    assert [placement.demand for placement in result.placements] == ["large", "small"]
    cordoned = node("b", schedulable=False, cpu_milli_free=2500)
    assert plan(Snapshot((node("a", cpu_milli_free=0), cordoned)), [starving]).held == ("large", "id-a")


def test_a_higher_priority_goes_before_a_starving_step() -> None:
    asked = [demand("large", cpu_milli=3000, starving=True), demand("urgent", priority=1), demand("small")]
    result = plan(Snapshot((node("a", cpu_milli_free=2000),)), asked)
    assert [placement.demand for placement in result.placements] == ["urgent"]
