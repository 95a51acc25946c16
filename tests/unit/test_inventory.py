"""The control plane's view of its nodes, and what it shows of running steps; no network, no clock."""

from __future__ import annotations

from typing import Any

from controlplane.nodes.inventory import Inventory
from controlplane.nodes.node import CACHE_LISTED, Node
from controlplane.runs.hub import LIVE_STEPS, Hub
from dataplane.protocol import Capacity, DataRoot, Directive, Heartbeat, Register

CAPACITY = Capacity(cpu_milli=4000, memory_bytes=1 << 30, slots=4)


def node(bearer: str = "t1", **more: Any) -> Node:
    declared = Register(identity="n", boot_id="b", proof="", version=1, features=[], capacity=CAPACITY, tiers={})
    return Node(
        id="node_1",
        tenant="default",
        declared=declared,
        token_hash=bearer,
        proof_hash="",
        last_seen=0.0,
        seen_ns=0,
        **more,
    )


def test_what_a_node_holds_is_made_once_until_it_changes() -> None:
    one = node()
    one.heard(Heartbeat(free=CAPACITY, cached_added=["a", "b"]))
    held = one.holds()
    one.heard(Heartbeat(free=CAPACITY))
    assert one.view(sandboxes=True).holds is one.view(sandboxes=False).holds is held
    one.heard(Heartbeat(free=CAPACITY, cached_added=["c"], cached_removed=["a"]))
    assert one.holds() == {"b", "c", "node:node_1"}
    one.heard(Heartbeat(free=CAPACITY, data=[DataRoot(name="d", size_bytes=1, digest="", files=1)]))
    assert one.holds() == {"b", "c", "data://d", "node:node_1"}


def test_a_node_lists_no_more_than_its_bound() -> None:
    one = node()
    for number in range(3):
        one.heard(Heartbeat(free=CAPACITY, cached_added=[f"{number}-{index}" for index in range(CACHE_LISTED - 1)]))
    assert len(one.cached) == CACHE_LISTED


def test_an_earlier_bearer_ends_with_the_next_registration_and_with_removal() -> None:
    inventory = Inventory()
    first, second = node("t1"), node("t2")
    inventory.add(first)
    assert inventory.by_token("t1") is first
    inventory.add(second)
    assert (inventory.by_token("t1"), inventory.by_token("t2")) == (None, second)
    assert first.wake.is_set()
    inventory.remove(second.id)
    assert (inventory.by_token("t2"), inventory.view()) == (None, [])


def test_a_node_silent_since_the_start_is_shown_as_the_scheduler_takes_it() -> None:
    silent = node(silent_since_start=True)
    assert not silent.view(sandboxes=False).schedulable
    assert silent.to_json()["status"] == "lost"
    silent.silent_since_start = False
    assert silent.to_json()["status"] == "ready"


def test_what_is_told_to_the_old_object_of_a_boot_reaches_the_poll_of_the_new_one() -> None:
    old, new = node("t1"), node("t2")
    queued = Directive(kind="cancel", attempt="att_0", fence=1)
    old.direct(queued)
    new.take_over(old)
    new.wake.clear()
    late = Directive(kind="cancel", attempt="att_1", fence=1)
    old.direct(late)
    assert new.wake.is_set()
    assert list(new.directives) == [queued, late]


def test_progress_of_steps_that_ended_makes_room_for_later_ones() -> None:
    hub = Hub()
    paths = [f"m[{index}]/x" for index in range(LIVE_STEPS + 10)]
    for seq, path in enumerate(paths, 1):
        hub.progress("run_1", path, {"fraction": 0.5})
        assert path in hub.live("run_1")
        event = {"seq": seq, "type": "step.completed", "path": path, "at_ns": 1, "data": {}}
        hub.committed("run_1", [event], False)
    assert hub.live("run_1") == {}
