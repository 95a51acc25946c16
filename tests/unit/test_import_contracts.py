"""What the control plane may import of the node is listed here; a new module is forbidden to it, or argued for here."""

from __future__ import annotations

import tomllib

from tests.acceptance.cluster import REPOSITORY

ALLOWED = {
    "protocol": "the wire",
    "model_wire": "the wire",
    "flow_wire": "the wire",
    "tunnel": "both ends of a tunnel speak the same frames",
    "serving.tokens": "signed here, checked there",
    "egress": "one judgement of addresses",
    "lookups": "egress asks it for names",
    "scrubbing": "both send secrets out: one way to find them in what comes back; pure, standard library only",
    "tool_definitions": "one digest of what a person reviewed",
    "config": "is_loopback",
}


def test_every_module_of_the_node_is_forbidden_to_the_control_plane_or_listed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (contract,) = [
        one for one in project["tool"]["importlinter"]["contracts"] if one["source_modules"] == ["controlplane"]
    ]
    assert contract["allow_indirect_imports"] is False and "ignore_imports" not in contract
    node = REPOSITORY / "dataplane"
    there = {one.stem for one in node.glob("*.py")} | {one.parent.name for one in node.glob("*/__init__.py")}
    there |= {f"serving.{one.stem}" for one in (node / "serving").glob("*.py")}
    named = {one.removeprefix("dataplane.") for one in contract["forbidden_modules"] if one.startswith("dataplane.")}
    assert named.isdisjoint(ALLOWED)
    assert there - {"__init__", "serving", "serving.__init__"} == named | set(ALLOWED)
