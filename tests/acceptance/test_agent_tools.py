"""Agents and the tools they are given, by real processes: an MCP server's, as functions and from programs, and one with
an effect, whose argument they may not choose once they have read what anyone could have written."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest

from tests import required
from tests.acceptance.cluster import REPOSITORY, Cluster
from tests.acceptance.counted_calls import CallService
from tests.acceptance.external_model import declare, settings
from tests.acceptance.test_examples import ended
from tests.scripted_model import NAME, Asked, Say, ScriptedModel

pytestmark = pytest.mark.needs_bubblewrap


def script(asked: Asked) -> Say:
    """Read, act, then say what came of it."""
    results = [str(message["content"]) for message in asked.messages if message["role"] == "tool"]
    in_code = "in code" in asked.messages[0]["content"]
    reading = "import stockade_tools as tools\ntools.sums.add(a=20, b=22)['result']"
    acting = "\n".join(
        (
            "import stockade_tools as tools",
            "try:",
            "    tools.count.ok(id='chosen')",
            "except tools.ToolError as error:",
            "    said = f'{error.type}: {error.remedy}'",
            "said",
        )
    )
    steps = [
        Say(calls=(("run_python", {"code": reading}),) if in_code else (("sums__add", {"a": 2, "b": 3}),)),
        Say(calls=(("run_python", {"code": acting}),) if in_code else (("count__ok", {"id": "chosen"}),)),
        Say(text=json.dumps(results)),
    ]
    return steps[len(results)]


def test_mcp_tools_in_both_modes_and_an_untrusted_argument_in_neither(tmp_path: Path, image_cache: Path) -> None:
    common = {"model": "small", "tools": ["sums.*", "count.ok"]}
    both = [
        {"id": "calls", "agent": {**common, "prompt": "as functions"}},
        {"id": "code", "agent": {**common, "prompt": "in code", "code": True}},
    ]
    workflow = {"stockade": "1", "name": "tools", "steps": [{"id": "both", "parallel": {}, "do": both}]}
    with CallService() as service, ScriptedModel(script) as server:
        variables = settings(tmp_path / "policy", [service.authority, server.authority])
        with Cluster(tmp_path, settings=variables, cache_dir=image_cache) as cluster:
            cluster.start_control_plane()
            declare(cluster, "small", server.url, NAME)
            packages = Path(sysconfig.get_paths()["purelib"])
            state = tmp_path / "server-state"
            state.mkdir(mode=0o755)
            (state / "description").write_text("Adds two numbers.")
            roots = {"servers": REPOSITORY / "tests" / "mcp_servers", "packages": packages, "state": state}
            cluster.start_node(data=roots)
            with cluster.client() as client:
                if not any("jail" in node.tiers for node in client.nodes()):
                    required.absent("jail", "the node has no jail")
                client.put_mcp_server(
                    "sums",
                    {
                        "process": {
                            "command": ["python3", "/inputs/servers/server.py", "well"],
                            "mounts": {name: f"data://{name}" for name in roots},
                            "env": {"PYTHONPATH": "/inputs/packages"},
                        }
                    },
                )
                listing = {"id": "list", "tool": "builtin.mcp.list", "args": {"server": "sums"}}
                assert ended(client, client.submit({**workflow, "steps": [listing]}).id).status == "completed"
                offered = next(one for one in client.mcp_server("sums").tools if one.tool == "add")
                client.review_mcp_server("sums", [{"name": "add", "digest": offered.digest, "effect": "none"}])
                client.put_tool("count.ok", {**service.tool(), "effect": "immediate"})
                run = ended(client, client.submit(workflow).id)
                events, denied = list(client.events(run.id)), client.decisions(run.id, allow=False)
        assert (run.status, run.error) == ("completed", None)
        calls, code = (json.loads(run.output["both"][name]) for name in ("calls", "code"))
        assert json.loads(calls[0]) == {"result": 5}
        assert calls[1].startswith("Error (policy_denied)") and "critical_args" in calls[1]
        assert code[0] == "42"
        assert "policy_denied" in code[1] and "critical_args" in code[1]
        assert {reason.code for one in denied for reason in one.reasons} == {"untrusted_critical_argument"}
        assert {one.path for one in denied} == {"both/calls#2/call0", "both/code#2/code0"}
        assert "call.refused" in [event.type for event in events]
        assert service.calls() == {}, "nothing was performed"
