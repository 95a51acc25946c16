"""The example classify as its README says, on a real SGLang that a real node runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

from tests import model_engines
from tests.acceptance.cluster import REPOSITORY, Cluster

EXAMPLE = REPOSITORY / "examples" / "classify"
SERVE_SECONDS = 400.0
RUN_SECONDS = 180.0


def stockade(cluster: Cluster, *arguments: str, seconds: float) -> str:
    """What the command prints. Fails the test with what it says if it fails."""
    environment = {**os.environ, "STOCKADE_URL": cluster.url, "STOCKADE_API_KEY": cluster.api_key}
    command = [sys.executable, "-m", "stockade.cli.main", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_messages_are_sorted_by_sglang_within_the_schema(make_cluster: Callable[..., Cluster]) -> None:
    model_engines.require("sglang")
    messages = json.loads((EXAMPLE / "messages.json").read_text())["messages"]
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node()
    applying = ("model", "apply", str(EXAMPLE / "model.json"))
    stockade(cluster, *applying, "--wait", "--timeout", str(SERVE_SECONDS), seconds=SERVE_SECONDS + 60)
    given = f"@{EXAMPLE / 'messages.json'}"
    running = ("run", str(EXAMPLE / "workflow.json"), "--input", given, "--wait", "-o", "name")
    run_id = stockade(cluster, *running, seconds=RUN_SECONDS).strip()
    with cluster.client() as client:
        run = client.run(run_id)
        assert (run.status, run.error) == ("completed", None)
        rows = run.output["rows"]
        assert [row["message"] for row in rows] == messages
        assert all(row["topic"] in ("billing", "outage", "question", "praise") for row in rows)
        assert all(row["urgency"] in ("low", "high") for row in rows)
        assert run.output["topics"] == Counter(row["topic"] for row in rows)
        calls = [step for step in client.steps(run_id) if step.verb == "llm"]
        assert len(calls) == len(messages)
        assert all(step.detail["usage"]["completion_tokens"] > 0 for step in calls)
        assert sum(one.entry == "runtime.model" and one.allow for one in client.decisions(run_id)) >= len(messages)
