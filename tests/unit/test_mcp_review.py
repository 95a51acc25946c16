"""A misspelt name in a review is refused: it would leave a tool less guarded than the reviewer thinks."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.errors import ApiError
from controlplane.tools.mcp_review import accepted, plain
from controlplane.tools.mcp_servers import McpServer
from controlplane.tools.mcp_spec import Acceptance, Definition, Listing, McpServerSpec
from dataplane import tool_definitions
from stockade.cli import mcp_tools
from stockade.cli.exits import Exit, Refusal
from stockade.cli.output import Format
from stockade.client import models

ORDER = {"name": "order", "inputSchema": {"type": "object", "properties": {"item": {"type": "string"}}}}


class Shop:
    """A client that knows one server, and what was accepted of it."""

    def __init__(self, state: str = "unreviewed") -> None:
        tool = {"name": "shop.order", "tool": "order", "state": state, "digest": "sha256:1", "definition": ORDER}
        self.server = models.McpServer.model_validate(
            {"name": "shop", "listed_at": "2026-01-01T00:00:00Z", "tools": [tool]}
        )
        self.accepted: list[dict[str, Any]] = []

    def mcp_server(self, _name: str) -> models.McpServer:
        return self.server

    def review_mcp_server(self, _name: str, accepted: list[dict[str, Any]]) -> None:
        self.accepted += accepted


def review(shop: Shop, monkeypatch: pytest.MonkeyPatch, **flags: list[str]) -> int:
    monkeypatch.setattr(mcp_tools, "listed", lambda _client, _name: shop.server)
    given: dict[str, Any] = {"only": [], "effects": [], "critical": [], **flags}
    return mcp_tools.review(shop, "shop", yes=True, form=Format.TABLE, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "flags",
    [{"only": ["ordr"]}, {"effects": ["ordr=none"]}, {"critical": ["ordr=item"]}],
    ids=lambda one: next(iter(one)),
)
def test_a_tool_that_is_not_offered_is_refused_before_anything_is_accepted(
    flags: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop()
    with pytest.raises(Refusal) as refused:
        review(shop, monkeypatch, **flags)
    assert (refused.value.code, refused.value.fix, shop.accepted) == (Exit.USAGE, "did you mean order?", [])


def test_naming_a_reviewed_tool_decides_it_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop("reviewed")
    assert review(shop, monkeypatch) == 0
    assert shop.accepted == []
    assert review(shop, monkeypatch, effects=["order=none"]) == 0
    assert [one["effect"] for one in shop.accepted] == ["none"]


@pytest.mark.parametrize(("argument", "hint"), [("itm", "did you mean 'item'?"), ("xyz", "it takes: item")])
def test_a_critical_argument_that_the_tool_does_not_take_is_refused(argument: str, hint: str) -> None:
    definition = Definition.model_validate(ORDER)
    spec = McpServerSpec.model_validate({"process": {"command": ["server"]}})
    server = McpServer(
        tenant="t",
        name="shop",
        digest="d",
        spec=spec,
        created_ns=1,
        offered=Listing(server="d", server_id="i", tools=[definition]),
        offered_ns=1,
    )
    digest = tool_definitions.digest(plain(definition))
    with pytest.raises(ApiError) as refused:
        accepted(server, Acceptance(name="order", digest=digest, effect="immediate", critical_args=[argument]))
    assert [one.hint for one in refused.value.errors] == [hint]
    known = Acceptance(name="order", digest=digest, effect="immediate", critical_args=["item"])
    assert accepted(server, known)[1].critical_args == ["item"]
