"""Pure parts of model serving: pauses, bounded logs, where replicas go, and what a node may say of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from controlplane.inference.placing import Unplaced, place
from controlplane.inference.spec import DeploymentSpec
from controlplane.nodes.inventory import Node
from controlplane.nodes.served_models import ServedModels
from dataplane.model_wire import EngineState, ModelFile, ModelLog, ModelReplica, ModelReport, ModelState
from dataplane.models.log_file import LogFile
from dataplane.models.replica import pause_seconds
from dataplane.protocol import VERSION, Capacity, Register

GIB = 1024**3


def test_pauses_double_up_to_a_minute() -> None:
    assert [pause_seconds(failures) for failures in (1, 2, 3, 6, 7, 8, 500)] == [1.0, 2.0, 4.0, 32.0, 60.0, 60.0, 60.0]


def test_a_log_is_cut_while_it_is_written_and_keeps_its_offsets(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "output.log", most_bytes=1000, kept_bytes=100)
    writer = (tmp_path / "output.log").open("ab", buffering=0)
    with writer:
        writer.write(b"a" * 1000)
        log.trim()
        assert log.tail(50) == (950, b"a" * 50)
        writer.write(b"b" * 500)
        log.trim()
        assert (tmp_path / "output.log").stat().st_size == 100
        writer.write(b"c")
        assert log.tail(4) == (1497, b"bbbc")
    assert LogFile(tmp_path / "output.log").written() == 1501, "a later daemon goes on counting"


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "output.log")
    log.trim()
    assert (log.written(), log.tail(10)) == (0, (0, b""))


# --- where a replica goes


def node(name: str, *, engines: tuple[str, ...] = ("llamacpp",), memory: int = 8 * GIB, **changed: Any) -> Node:
    declared = Register(
        identity=name, boot_id="b", proof="", version=VERSION, features=["models"],
        capacity=Capacity(cpu_milli=4000, memory_bytes=memory, slots=8), tiers={}, labels=changed.pop("labels", {}),
    )  # fmt: skip
    made = Node(
        id=name, tenant="t", declared=declared, token_hash="", proof_hash="", last_seen=time.monotonic(), seen_ns=0,
        **changed,
    )  # fmt: skip
    made.models.engines = {one: EngineState(name=one, version="1") for one in engines}  # type: ignore[arg-type]
    made.models.files = {"m.gguf": ModelFile(name="m.gguf", engine="llamacpp", size_bytes=1)}
    return made


def spec(**changed: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"engine": "llamacpp", "source": "m.gguf"} | changed)


def reason(found: str | Unplaced) -> str:
    assert isinstance(found, Unplaced), found
    assert found.message and found.fix
    return found.reason


def test_replicas_spread_and_share_a_node_only_where_they_must() -> None:
    nodes = [node("a"), node("b")]
    first = place(spec(), "r1", nodes, ())
    assert first in ("a", "b")
    second = place(spec(), "r2", nodes, {str(first)})
    assert {first, second} == {"a", "b"}
    assert place(spec(), "r3", nodes, {"a", "b"}) in ("a", "b")


def test_what_a_node_serves_already_takes_its_room() -> None:
    one = node("a", memory=3 * GIB)
    assert place(spec(memory_bytes=2 * GIB), "r1", [one], ()) == "a"
    one.models.reserved["r1"] = 500, 2 * GIB
    found = place(spec(memory_bytes=2 * GIB), "r2", [one], ())
    assert reason(found) == "NoRoom"
    assert isinstance(found, Unplaced) and "memory" in found.message


@pytest.mark.parametrize(
    ("nodes", "wanted", "why"),
    [
        ([], {}, "NoNode"),
        ([node("a", lost=True)], {}, "NoNode"),
        ([node("a", engines=())], {}, "NoEngine"),
        ([node("a")], {"engine": "sglang", "source": "m"}, "NoEngine"),
        ([node("a")], {"source": "other.gguf"}, "NoModel"),
        ([node("a")], {"gpus": 1}, "NoRoom"),
        ([node("a")], {"labels": {"zone": "x"}}, "NoRoom"),
        ([node("a", cordoned=True)], {}, "NoRoom"),
    ],
)
def test_a_replica_without_a_place_says_why(nodes: list[Node], wanted: dict[str, Any], why: str) -> None:
    assert reason(place(spec(**wanted), "r", nodes, ())) == why


def test_labels_choose_the_node() -> None:
    nodes = [node("a"), node("b", labels={"zone": "x"})]
    assert place(spec(labels={"zone": "x"}), "r", nodes, ()) == "b"


# --- what a node may say


def wish(replica: str) -> ModelReplica:
    return ModelReplica(
        replica=replica, deployment="d", spec="s", engine="llamacpp", source="m.gguf", served_name="d"
    )  # fmt: skip


def state(replica: str, **changed: Any) -> ModelState:
    return ModelState(replica=replica, deployment="d", spec="s", **{"state": "ready", **changed})


def test_a_node_is_told_its_wishes_until_it_follows_them() -> None:
    served = ServedModels()
    empty = served.desired.revision
    assert served.answer(ModelReport()) is not None, "one that has heard nothing hears that there is nothing"
    assert served.answer(ModelReport(revision=empty)) is None
    served.wanted["r"] = wish("r")
    told = served.answer(ModelReport(revision=empty))
    assert told is not None and [one.replica for one in told.replicas] == ["r"]
    assert served.answer(ModelReport(revision=told.revision)) is None


def test_room_is_free_when_the_node_says_that_the_server_is_gone() -> None:
    served = ServedModels()
    served.reserved["r"] = 1, 1
    assert served.heard(ModelReport(revision="another")) == []
    current = served.desired.revision
    assert served.heard(ModelReport(revision=current, states=[state("r", state="draining")])) == []
    assert served.heard(ModelReport(revision=current)) == ["r"]
    assert not served.reserved


def test_a_node_s_word_is_bounded_and_cleaned() -> None:
    served = ServedModels()
    liar = state("r", detail="x\x1b[2J\u202e" + "y" * 10_000, slots=-5, running=2**70, token_usage=float("nan"))
    served.heard(ModelReport(states=[liar, *(state(f"r{number}") for number in range(1000))]))
    kept = served.states["r"]
    assert len(served.states) == 128
    assert len(kept.detail) <= 500 and "\x1b" not in kept.detail and "\u202e" not in kept.detail
    assert (kept.slots, kept.running, kept.token_usage) == (0, 2**53, None)


def test_a_log_that_nobody_asked_for_is_not_kept() -> None:
    served = ServedModels()
    assert not served.told(ModelLog(replica="r", offset=0, data=b"x" * 10**6))
