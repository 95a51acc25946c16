"""``llm`` steps on a real model server, llama.cpp's with its small model, behind a real control plane's gateway."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.cluster import Cluster, wait_for
from tests.acceptance.external_model import declare, settings
from tests.llama_server import MODEL, LlamaServer

SCHEMA = {
    "type": "object",
    "required": ["team", "urgent"],
    "properties": {"team": {"enum": ["web", "database", "network"]}, "urgent": {"type": "boolean"}},
    "additionalProperties": False,
}


def test_a_schema_gives_a_valid_object_and_a_missing_server_an_error(tmp_path: Path) -> None:
    tickets = ["The checkout page is blank.", "Queries on the orders table take a minute.", "Packets are lost."]
    classify = {
        "id": "one",
        "retry": {"max": 2, "backoff": "100ms"},
        "llm": {
            "prompt": "Which team handles this ticket?\n${item}",
            "max_tokens": 40,
            "temperature": 0,
            "output": SCHEMA,
        },
    }
    steps = [
        {"id": "all", "map": {"over": tickets, "concurrency": 2}, "do": [classify]},
        {"id": "text", "llm": {"prompt": "Say hello.", "max_tokens": 8}},
    ]
    workflow = {"stockade": "1", "name": "classify", "defaults": {"model": "small"}, "steps": steps}
    with LlamaServer(tmp_path) as server:
        variables = settings(tmp_path / "policy", [server.url.split("/")[2]])
        with Cluster(tmp_path, settings=variables) as cluster:
            cluster.start_control_plane()
            declare(cluster, "small", server.url, MODEL)
            with cluster.client() as client:
                run_id = client.submit(workflow).id
                wait_for(lambda: client.run(run_id).ended, "the run ending", 180)
                run, found = client.run(run_id), {step.path: step for step in client.steps(run_id)}
                assert (run.status, run.error) == ("completed", None)
                for item in run.output["all"]:
                    assert item["one"]["team"] in ("web", "database", "network")
                    assert isinstance(item["one"]["urgent"], bool)
                assert isinstance(run.output["text"], str) and run.output["text"]
                usage = found["text"].detail["usage"]
                assert usage["prompt_tokens"] > 0 and 0 < usage["completion_tokens"] <= 8
                assert found["text"].node is None
                made = {one.entry for one in client.decisions(run_id)}
                assert made == {"runtime.workflow", "runtime.model"}
                server.kill()
                again = client.submit({**workflow, "steps": steps[1:]}).id
                wait_for(lambda: client.run(again).ended, "the run failing", 60)
                error = client.run(again).error
                assert error is not None and error.type == "model", error
