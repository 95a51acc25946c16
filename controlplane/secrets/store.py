"""The port of the secret store, and the adapter that keeps sealed values in the database."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from sqlmodel import col, select

from controlplane.runs.journal import Journal
from controlplane.secrets.sealing import Sealer
from controlplane.store import Store, Write, upsert
from controlplane.tables import SecretRow


@dataclass(frozen=True, kw_only=True)
class SecretName:
    """What may be known of a secret."""

    name: str
    created_ns: int
    updated_ns: int


class SecretStore(Protocol):
    """Names to values, by tenant. Only the broker reads values."""

    async def put(self, tenant: str, name: str, value: str) -> None:
        """Create or replace; durable on return."""

    async def get(self, tenant: str, name: str) -> str | None:
        """The value, or None. Raises: SealBroken when it cannot be opened with the keys at hand."""

    async def names(self, tenant: str) -> list[SecretName]:
        """All of them, sorted by name, without values."""

    async def delete(self, tenant: str, name: str) -> bool:
        """Remove; False when there was none."""


class DatabaseSecrets:
    """Sealed values in the ``secret`` table. Bound to its tenant and name: a row copied elsewhere does not open."""

    def __init__(self, store: Store, journal: Journal, sealer: Sealer) -> None:
        self._store = store
        self._journal = journal
        self._sealer = sealer

    async def put(self, tenant: str, name: str, value: str) -> None:
        now = time.time_ns()
        known = await self._store.read(lambda session: session.get(SecretRow, (tenant, name)))
        row = {
            "tenant": tenant,
            "name": name,
            "v": 1,
            "key_id": self._sealer.key_id,
            "sealed": self._sealer.seal(value.encode(), _bound_to(tenant, name)),
            "created_ns": now if known is None else known.created_ns,
            "updated_ns": now,
        }
        await self._journal.write([upsert(SecretRow, row)])

    async def get(self, tenant: str, name: str) -> str | None:
        row = await self._store.read(lambda session: session.get(SecretRow, (tenant, name)))
        if row is None:
            return None
        return self._sealer.open(row.key_id, row.sealed, _bound_to(tenant, name)).decode()

    async def names(self, tenant: str) -> list[SecretName]:
        query = (
            select(SecretRow.name, SecretRow.created_ns, SecretRow.updated_ns)
            .where(SecretRow.tenant == tenant)
            .order_by(col(SecretRow.name))
        )
        rows = await self._store.read(lambda session: session.exec(query).all())
        return [SecretName(name=name, created_ns=created, updated_ns=updated) for name, created, updated in rows]

    async def delete(self, tenant: str, name: str) -> bool:
        known = await self._store.read(lambda session: session.get(SecretRow, (tenant, name)))
        if known is None:
            return False
        await self._journal.write([Write("DELETE FROM secret WHERE tenant=? AND name=?", (tenant, name))])
        return True


def _bound_to(tenant: str, name: str) -> bytes:
    return f"{tenant}/{name}".encode()
