"""examples/mcp: a server that others wrote, from the package index, under policy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import required
from tests.acceptance.cluster import REPOSITORY, Cluster
from tests.acceptance.test_examples import definition, ended
from tests.acceptance.test_mcp import stockade

EXAMPLE = REPOSITORY / "examples" / "mcp"
NEEDED = "mcp-time"


def packages() -> Path:
    """Where ``make mcp-time`` installs the server."""
    shared = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    components = Path(os.environ.get("STOCKADE_COMPONENTS") or shared / "stockade" / "components")
    return components / NEEDED


@pytest.mark.needs_bubblewrap
def test_one_tool_of_a_server_is_granted_and_the_other_denied(make_cluster: Callable[..., Cluster]) -> None:
    if not (packages() / "mcp_server_time").is_dir():
        required.absent(NEEDED, f"{packages()} has no mcp_server_time (make mcp-time)")
    cluster = make_cluster(settings={"STOCKADE_POLICY_DIR": str(EXAMPLE / "policy")})
    cluster.start_control_plane()
    cluster.start_node("node-a", data={"mcp-time": packages()})
    stockade(cluster, "tool", "add", str(EXAMPLE / "server.json"))
    shown = stockade(cluster, "tool", "review", "time", "--yes", "--effect", "*=none").stdout
    assert "time.get_current_time" in shown and "time.convert_time" in shown
    with cluster.client() as client:
        run = ended(client, client.submit(definition("mcp"), {"timezone": "Europe/Berlin"}).id)
        assert run.status == "completed", run.error
        assert "Europe/Berlin" in json.dumps(run.output["now"])
        assert run.output["convert"] == "failed" and "not on our list" in run.output["why"]
        denied = client.decisions(run.id, allow=False)
        assert [reason.code for one in denied for reason in one.reasons] == ["mcp_tool_not_granted"]
