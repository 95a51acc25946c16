"""Who is calling: principals, their API keys, and the tokens by which nodes join.

    Authorization: Bearer sk_…  ─> Identities.authenticate ─> Principal ─> require("run") ─> endpoint

Keys are stored hashed. A found key is remembered for ``CACHE_SECONDS``; revoking one forgets it at once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio.to_thread
from fastapi import Request
from sqlmodel import col, select

from controlplane.errors import forbidden, not_found, unauthorized
from controlplane.ids import new_id
from controlplane.runs.journal import Journal
from controlplane.store import Store, canonical, insert, upsert
from controlplane.tables import JoinTokenRow, PrincipalRow
from controlplane.times import rfc3339
from controlplane.tokens import hash_token, make_token

Scope = Literal["run", "read", "approve", "secret", "tool", "model", "infer", "admin"]
SCOPES: tuple[Scope, ...] = ("run", "read", "approve", "secret", "tool", "model", "infer", "admin")
CACHE_SECONDS = 30.0
_CACHE_MAX = 4096
_SHOWN = 11  # characters of a key that lists may show: sk_ and eight of its random part


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who calls, as policy and the journal see them."""

    tenant: str
    id: str
    kind: Literal["person", "service"]
    name: str
    scopes: frozenset[str]
    groups: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "tenant": self.tenant,
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "scopes": sorted(self.scopes),
            "groups": list(self.groups),
        }


class Identities:
    """Keys and join tokens of one tenant. Its methods run on the event loop."""

    def __init__(self, store: Store, journal: Journal, tenant: str, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._journal = journal
        self._tenant = tenant
        self._now_ns = now_ns
        self._cache: dict[str, tuple[Principal, int]] = {}

    async def authenticate(self, key: str) -> Principal | None:
        """The principal of a valid key, else None."""
        if not key.startswith("sk_") or len(key) > 200:
            return None
        hashed = hash_token(key)
        now = self._now_ns()
        known = self._cache.get(hashed)
        if known is not None and known[1] > now:
            return known[0]
        query = select(PrincipalRow).where(PrincipalRow.key_hash == hashed)
        row = await self._store.read(lambda session: session.exec(query).first())
        if row is None or row.revoked_ns is not None or (row.expires_ns is not None and row.expires_ns <= now):
            self._cache.pop(hashed, None)
            return None
        if len(self._cache) >= _CACHE_MAX:
            self._cache.clear()
        principal = _principal(row)
        until = now + int(CACHE_SECONDS * 1e9)
        self._cache[hashed] = (principal, until if row.expires_ns is None else min(until, row.expires_ns))
        return principal

    async def create(
        self,
        *,
        name: str,
        kind: Literal["person", "service"],
        scopes: Iterable[str],
        groups: Iterable[str] = (),
        expires_in_seconds: float | None = None,
    ) -> tuple[dict[str, Any], str]:
        """A new principal with a key. The key is returned here and never again."""
        key = make_token("sk")
        now = self._now_ns()
        row = PrincipalRow(
            tenant=self._tenant,
            id=new_id("key"),
            kind=kind,
            name=name,
            key_prefix=key[:_SHOWN],
            key_hash=hash_token(key),
            scopes=canonical(sorted(set(scopes))),
            groups=canonical(sorted(set(groups))),
            created_ns=now,
            expires_ns=None if expires_in_seconds is None else now + int(expires_in_seconds * 1e9),
        )
        await self._journal.write([insert(PrincipalRow, row.model_dump())])
        return principal_json(row), key

    async def list(self) -> list[dict[str, Any]]:
        """All keys, newest first, without the keys."""
        query = (
            select(PrincipalRow)
            .where(PrincipalRow.tenant == self._tenant)
            .order_by(col(PrincipalRow.created_ns).desc(), col(PrincipalRow.id).desc())
        )
        rows = await self._store.read(lambda session: session.exec(query).all())
        return [principal_json(row) for row in rows]

    async def revoke(self, key_id: str) -> None:
        """End a key, now. Raises: ApiError not-found."""
        row = await self._store.read(lambda session: session.get(PrincipalRow, (self._tenant, key_id)))
        if row is None:
            raise not_found("key", key_id)
        if row.revoked_ns is None:
            values = row.model_dump() | {"revoked_ns": self._now_ns()}
            await self._journal.write([upsert(PrincipalRow, values)])
        self._cache.pop(row.key_hash, None)

    async def ensure_admin_key(self, path: Path) -> str:
        """The key in ``path`` if it is valid; else a new person's key with every scope, written there (0600)."""
        known = await anyio.to_thread.run_sync(_read_key, path)
        if known is not None and await self.authenticate(known) is not None:
            return known
        _, key = await self.create(name="admin", kind="person", scopes=SCOPES, groups=("admins",))
        await anyio.to_thread.run_sync(write_private, path, key.encode() + b"\n")
        return key

    async def ensure_join_token(self, path: Path) -> None:
        """The nodes of this machine join with the token in ``path`` (0600); it is made anew when it is not valid."""
        known = await anyio.to_thread.run_sync(_read_key, path)
        if known is None or await self.join_tenant(known) is None:
            token, _ = await self.create_join_token(None)
            await anyio.to_thread.run_sync(write_private, path, token.encode() + b"\n")

    async def create_join_token(self, seconds: float | None) -> tuple[str, int | None]:
        """A token for nodes to join with, and when it ends (ns; None: never)."""
        token = make_token("sj")
        now = self._now_ns()
        expires = None if seconds is None else now + int(seconds * 1e9)
        row = {"tenant": self._tenant, "token_hash": hash_token(token), "created_ns": now, "expires_ns": expires}
        await self._journal.write([insert(JoinTokenRow, row)])
        return token, expires

    async def join_tenant(self, token: str) -> str | None:
        """The tenant a valid join token belongs to, else None."""
        hashed = hash_token(token)
        query = select(JoinTokenRow).where(JoinTokenRow.token_hash == hashed)
        row = await self._store.read(lambda session: session.exec(query).first())
        if row is None or (row.expires_ns is not None and row.expires_ns <= self._now_ns()):
            return None
        return row.tenant


def bearer_key(request: Request) -> str | None:
    """The key a request carries, in either of its two places."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return request.headers.get("x-api-key")


def require(scope: Scope | None) -> Callable[[Request], Awaitable[Principal]]:
    """A FastAPI dependency: the caller, who must have ``scope`` (None: any valid key)."""

    async def dependency(request: Request) -> Principal:
        key = bearer_key(request)
        identities: Identities = request.app.state.services.identities
        principal = await identities.authenticate(key) if key else None
        if principal is None:
            raise unauthorized()
        if scope is not None and scope not in principal.scopes:
            raise forbidden(scope)
        return principal

    return dependency


def kept_token(path: Path, prefix: str) -> str:
    """The hash of the token in ``path`` (0600), which is made if there is none. Blocking."""
    known = _read_key(path)
    if known is None:
        known = make_token(prefix)
        write_private(path, known.encode() + b"\n")
    return hash_token(known)


def write_private(path: Path, content: bytes) -> None:
    """Replace ``path`` by a file that only its owner can read, atomically. Blocking."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def principal_json(row: PrincipalRow) -> dict[str, Any]:
    """A key as lists show it."""
    return {
        "id": row.id,
        "name": row.name,
        "kind": row.kind,
        "prefix": row.key_prefix,
        "scopes": json.loads(row.scopes),
        "groups": json.loads(row.groups),
        "created_at": rfc3339(row.created_ns),
        "expires_at": rfc3339(row.expires_ns),
        "revoked_at": rfc3339(row.revoked_ns),
    }


def _principal(row: PrincipalRow) -> Principal:
    return Principal(
        tenant=row.tenant,
        id=row.id,
        kind="person" if row.kind == "person" else "service",
        name=row.name,
        scopes=frozenset(json.loads(row.scopes)),
        groups=tuple(json.loads(row.groups)),
    )


def _read_key(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
