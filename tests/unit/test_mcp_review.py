"""What a reviewer is shown of an MCP tool is all that a model can be told of it."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.tools import mcp_review
from controlplane.tools.mcp_servers import McpServer
from controlplane.tools.mcp_spec import Acceptance, Definition, Listing, McpServerSpec
from dataplane import tool_definitions
from stockade.cli import mcp_tools
from stockade.client.models import McpTool

FULL: dict[str, Any] = {
    "name": "add",
    "title": "the-title",
    "description": "the-description\nof two lines",
    "inputSchema": {"type": "object", "description": "in-the-input"},
    "outputSchema": {"type": "object", "description": "in-the-output"},
    "annotations": {"readOnlyHint": True, "title": "in-the-annotations"},
}


def _server(definition: dict[str, Any]) -> McpServer:
    return McpServer(
        tenant="default",
        name="calc",
        digest="sha256:0",
        spec=McpServerSpec.model_validate({"process": {"command": ["x"]}}),
        created_ns=0,
        offered=Listing(server="calc", server_id="x", tools=[Definition.model_validate(definition)]),
        offered_ns=0,
    )


def _printed(definition: dict[str, Any]) -> str:
    shown = mcp_review.shown(_server(definition), [])["tools"]
    return "\n".join(line for one in shown for line in mcp_tools.described(McpTool.model_validate(one)))


def test_everything_pinned_is_printed() -> None:
    assert set(FULL) == set(tool_definitions.PINNED)
    printed = _printed(FULL)
    said = ("the-title", "the-description", "    | of two lines", "in-the-input", "in-the-output", "in-the-annotations")
    for text in said:
        assert text in printed
    assert 'name: "add"' in printed


@pytest.mark.parametrize("left_out", [{"description"}, {"description", "title"}])
def test_what_stands_for_a_missing_description_was_shown(left_out: set[str]) -> None:
    definition = {key: value for key, value in FULL.items() if key not in left_out}
    acceptance = Acceptance(name="add", digest=tool_definitions.digest(definition))
    _, accepted = mcp_review.accepted(_server(definition), acceptance)
    printed = _printed(definition)
    assert accepted.description in printed
    assert "no description: a model is told the title" in printed
