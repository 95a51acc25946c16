"""The registered MCP servers, in memory; the ``mcp_server`` table is what a restart reads.

A server is declared (``put``), a node lists what it offers (``listed``), a person accepts definitions by digest
(``ToolRegistry.review``). Declaring it anew forgets what it offered, and what was accepted counts no more.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import time
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from sqlmodel import select

from controlplane.errors import not_found
from controlplane.runs.journal import Journal
from controlplane.store import Store, Write, canonical, upsert
from controlplane.tables import McpServerRow
from controlplane.tools.mcp_spec import Definition, Listing, McpServerSpec
from controlplane.tools.spec import digest_of

OFFERED_MOST = 2 * 1024 * 1024
"""Characters of a listing as it is stored."""


@dataclass(frozen=True, kw_only=True)
class McpServer:
    """One declaration. ``offered`` is ``None`` until a node has listed it."""

    tenant: str
    name: str
    digest: str
    spec: McpServerSpec
    created_ns: int
    offered: Listing | None = None
    offered_ns: int | None = None

    @property
    def id(self) -> str:
        """Names this declaration of this tenant: nodes run at most one process for each."""
        return f"sha256:{hashlib.sha256(canonical([self.tenant, self.name, self.digest]).encode()).hexdigest()}"

    def definition(self, tool: str) -> Definition | None:
        """What the server was found to offer under the name."""
        return next((one for one in self.offered.tools if one.name == tool), None) if self.offered else None


class McpServers:
    """Reads are from memory; ``load`` once before serving. Writes are durable on return."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store, self._journal = store, journal
        self._servers: dict[tuple[str, str], McpServer] = {}

    async def load(self) -> None:
        """Read the table."""
        for row in await self._store.read(lambda session: session.exec(select(McpServerRow)).all()):
            self._servers[row.tenant, row.name] = McpServer(
                tenant=row.tenant,
                name=row.name,
                digest=row.digest,
                spec=McpServerSpec.model_validate(json.loads(row.spec)),
                created_ns=row.created_ns,
                offered=None if row.offered is None else Listing.model_validate(json.loads(row.offered)),
                offered_ns=row.offered_ns,
            )

    def get(self, tenant: str, name: str) -> McpServer | None:
        """The current declaration."""
        return self._servers.get((tenant, name))

    def list(self, tenant: str) -> list[McpServer]:
        """All of the tenant, sorted."""
        return sorted((one for (owner, _), one in self._servers.items() if owner == tenant), key=lambda one: one.name)

    async def put(self, tenant: str, name: str, spec: McpServerSpec) -> McpServer:
        """Declare or declare anew; the same declaration again changes nothing."""
        plain = spec.model_dump(mode="json", exclude_defaults=True) | {"kind": "mcp"}
        digest = digest_of(name, plain)
        known = self.get(tenant, name)
        if known is not None and known.digest == digest:
            return known
        server = McpServer(tenant=tenant, name=name, digest=digest, spec=spec, created_ns=time.time_ns())
        await self._journal.write([_row(server)])
        self._servers[tenant, name] = server
        return server

    def deletion(self, tenant: str, name: str) -> Write:
        """The write that forgets a server; ``forget`` when it is durable. Raises: ApiError not-found."""
        if (tenant, name) not in self._servers:
            raise not_found("MCP server", name)
        return Write("DELETE FROM mcp_server WHERE tenant=? AND name=?", (tenant, name))

    def forget(self, tenant: str, name: str) -> None:
        """Out of memory, too."""
        self._servers.pop((tenant, name), None)

    def listed(self, tenant: str, name: str, answer: Any) -> builtins.list[Write]:
        """Keep what a node says the server offers, and the write that makes it last.

        Nothing, if the server was declared anew meanwhile. Raises ``ValueError`` for what is no listing.
        """
        server = self.get(tenant, name)
        try:
            listing = Listing.model_validate(answer)
        except ValidationError as error:
            raise ValueError(f"the node's listing is not one: {error.errors()[0]['msg']}") from None
        if len(canonical(answer)) > OFFERED_MOST:
            raise ValueError("the node's listing is too large")
        if server is None or listing.server_id != server.id:
            return []
        known = replace(server, offered=listing, offered_ns=time.time_ns())
        self._servers[tenant, name] = known
        return [_row(known)]


def _row(server: McpServer) -> Write:
    offered = None if server.offered is None else server.offered.model_dump(mode="json", exclude_none=True)
    row = {
        "tenant": server.tenant,
        "name": server.name,
        "digest": server.digest,
        "spec": canonical(server.spec.model_dump(mode="json", exclude_defaults=True) | {"kind": "mcp"}),
        "offered": None if offered is None else canonical(offered),
        "offered_ns": server.offered_ns,
        "created_ns": server.created_ns,
    }
    return upsert(McpServerRow, row)
