"""A network grant where it is written, placed, refused, and recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.runs.flows import FLOWS_MOST, _is_new, _shown
from controlplane.runs.nearness import Near
from controlplane.runs.state import StepState
from controlplane.runs.work import demand_of
from controlplane.workflows.graph import compile_workflow
from controlplane.workflows.problem_values import WorkflowInvalid
from dataplane.flow_wire import FlowRecord
from sandboxes.driver import Feature, refuse_missing
from sandboxes.errors import TierUnavailable
from sandboxes.jail.driver import JailDriver
from sandboxes.spec import SandboxSpec, Tier
from sandboxes.testing import FakeDriver


def workflow(sandbox: object, defaults: object = None) -> dict[str, object]:
    step = {"id": "a", "code": {"python": "1"}, "sandbox": sandbox}
    return {"stockade": "1", "name": "w", "steps": [step], "defaults": {"sandbox": defaults} if defaults else {}}


def test_each_host_is_asked_for_with_its_ports_and_none_takes_back_what_the_defaults_grant() -> None:
    hosts = [{"host": "a.example"}, {"host": "b.example", "ports": [80, 443, 80]}]
    (step,) = compile_workflow(workflow({"network": hosts})).root.steps
    assert step.sandbox.network == (("a.example", 443), ("b.example", 80), ("b.example", 443))
    (step,) = compile_workflow(workflow({"network": "none"}, {"network": hosts})).root.steps
    assert step.sandbox.network == ()
    (step,) = compile_workflow(workflow({"memory": "64Mi"}, {"network": hosts})).root.steps
    assert len(step.sandbox.network) == 3


def test_a_step_with_a_network_is_placed_where_guests_have_sockets() -> None:
    (step,) = compile_workflow(workflow({"network": [{"host": "a.example"}]})).root.steps
    assert demand_of(step, (), Near()).tier_options() == ("jail",)


@pytest.mark.parametrize(
    ("sandbox", "pointer", "says"),
    [
        ({"tier": "wasm", "network": [{"host": "a.example"}]}, "/steps/0/sandbox/tier", "no sockets"),
        ({"network": "all"}, "/steps/0/sandbox/network", ""),
        ({"network": [{"host": "*.example"}]}, "/steps/0/sandbox/network/0/host", ""),
        ({"network": [{"host": "A.example"}]}, "/steps/0/sandbox/network/0/host", ""),
        ({"network": [{"host": "a.example", "ports": [0]}]}, "/steps/0/sandbox/network/0/ports/0", ""),
        (
            {"network": [{"host": "a.example", "methods": ["GET"]}]},
            "/steps/0/sandbox/network/0/methods",
            "not there yet",
        ),
    ],
)
def test_what_cannot_be_granted_is_refused_by_its_pointer(sandbox: object, pointer: str, says: str) -> None:
    with pytest.raises(WorkflowInvalid) as refused:
        compile_workflow(workflow(sandbox))
    (problem,) = [one for one in refused.value.problems if one.pointer == pointer]
    assert says in problem.message and problem.hint


def test_a_tier_refuses_what_it_has_not(tmp_path: Path) -> None:
    without = FakeDriver(features=frozenset({Feature.PYTHON}))
    with pytest.raises(TierUnavailable, match="no sockets"):
        refuse_missing(without, SandboxSpec(tier=Tier.JAIL, network=True))
    with pytest.raises(TierUnavailable, match="use container"):
        refuse_missing(without, SandboxSpec(tier=Tier.JAIL, gpus=("GPU-1",)))
    assert Feature.GPU not in JailDriver.features


def test_a_record_is_stored_once_and_no_more_of_an_attempt_than_there_can_be() -> None:
    (spec,) = compile_workflow(workflow({})).root.steps
    step = StepState(path="a", spec=spec, frame=None)  # type: ignore[arg-type]
    first = FlowRecord(attempt="att_1", fence=1, number=1)
    assert _is_new(step, first) and not _is_new(step, first)
    for number in (0, -1, FLOWS_MOST + 1):
        assert not _is_new(step, FlowRecord(attempt="att_1", fence=1, number=number))
    assert _is_new(step, FlowRecord(attempt="att_2", fence=2, number=1)) and len(step.flows) == 1


def test_what_a_node_says_of_a_flow_is_bounded() -> None:
    shown = _shown(
        FlowRecord(
            attempt="att_1", fence=1, number=1, host="\x1b[31m" + "x" * 9000, port=10**9, sent_bytes=-1,
            received_bytes=10**30, seconds=float("nan"), ended="\n",
        )
    )  # fmt: skip
    assert shown["host"].startswith("_[31mx") and len(shown["host"]) == 255
    assert (shown["port"], shown["sent_bytes"], shown["received_bytes"]) == (65535, 0, 2**53)
    assert shown["seconds"] == 0.0 and shown["ended"] == "_"
