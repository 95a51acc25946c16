"""What is known of the bytes that steps name: sizes, digests, and data sets that only share a name."""

from __future__ import annotations

from typing import Any, cast

from controlplane.nodes.inventory import Inventory, Node, Reservation
from controlplane.placement.catalogue import Catalogue, Stored
from controlplane.store import Store
from dataplane.protocol import (
    Assignment,
    Capacity,
    CodeWork,
    DataRoot,
    InputGrant,
    Register,
    SandboxRequest,
)
from scheduler.demand import DataNeed, Demand

GB = 10**9


def node(name: str, *roots: DataRoot, **more: Any) -> Node:
    declared = Register(
        identity=name,
        boot_id="b",
        proof="",
        version=1,
        features=[],
        capacity=Capacity(cpu_milli=1, memory_bytes=1, slots=1),
        tiers={},
        data=list(roots),
    )
    return Node(
        id=f"node_{name}",
        tenant="t",
        declared=declared,
        token_hash=name,
        proof_hash="",
        last_seen=0.0,
        seen_ns=0,
        **more,
    )


def root(digest: str, size: int = GB, files: int = 4) -> DataRoot:
    return DataRoot(name="logs", size_bytes=size, digest=digest, files=files)


def catalogue(*nodes: Node) -> Catalogue:
    inventory = Inventory()
    for one in nodes:
        inventory.add(one)
    found = Catalogue(cast(Store, None), inventory)
    found._known["t", "art_1"] = Stored("sha256:1", 5 * GB, None)
    return found


def near(*keys: str) -> Demand:
    return Demand(id="d", near=tuple(DataNeed(key=key) for key in keys))


def test_a_root_counts_whole_and_a_path_beneath_it_as_the_mean_of_its_files() -> None:
    known = catalogue(node("a", root("x")), node("b"))
    located = known.located("t", near("data://logs", "data://logs/day-1", "data://nobody"))
    assert [(one.key, one.size_bytes) for one in located.near] == [
        ("data://logs", GB), ("data://logs", GB // 4), ("data://nobody", None),
    ]  # fmt: skip


def test_an_artifact_counts_by_its_digest_in_its_own_tenant_only() -> None:
    known = catalogue()
    demand = near("artifact://art_1", "artifact://art_2", "node:node_a")
    assert [(one.key, one.size_bytes) for one in known.located("t", demand).near] == [
        ("sha256:1", 5 * GB), ("node:node_a", None),
    ]  # fmt: skip
    assert [one.key for one in known.located("other", demand).near] == ["node:node_a"]


def test_replicas_have_one_digest_and_other_data_of_the_same_name_is_said_to_be_other_data() -> None:
    located = near("data://logs")
    assert catalogue(node("a", root("x")), node("b", root("x"))).notes(located) == ()
    (note,) = catalogue(node("a", root("sha256:aa")), node("b", root("sha256:bb"))).notes(located)
    assert note == (
        "data://logs is 2 different data sets: sha256:aa on a, sha256:bb on b; export each under a name of its own"
    )
    gone = node("b", root("sha256:bb"), lost=True)
    assert catalogue(node("a", root("sha256:aa")), gone).notes(located) == (), "nobody can be placed there"


def test_what_is_on_its_way_to_a_node_counts_as_there_until_its_attempt_is_over() -> None:
    one = node("a")
    work = CodeWork(
        language="python",
        source="1",
        sandbox=SandboxRequest(tier="wasm", image="python", memory_bytes=1, wall_seconds=1),
        inputs=[InputGrant(name="x", artifact="art_1", digest="sha256:1")],
    )
    given = Assignment(attempt="att_1", fence=1, run="r", path="p", number=1, wall_seconds=1, code=work)
    assert one.assign(Reservation(assignment=given, cpu_milli=0, memory_bytes=0))
    assert "sha256:1" in one.holds()
    one.end("att_1")
    assert "sha256:1" not in one.holds(), "it failed to come"
    one.caches(["sha256:1"])
    assert "sha256:1" in one.holds()
    one.moved(10 * 1024, 0.001)
    assert one.bytes_per_second is None
    one.moved(GB, 10.0)
    one.moved(GB, 5.0)
    assert one.bytes_per_second == 1.3 * GB / 10
