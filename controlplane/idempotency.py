"""``Idempotency-Key``: a POST that is sent again gets the first one's answer.

    same key, same request    -> the stored answer          other request   -> 422 idempotency-mismatch
    first still running       -> 409 in flight              first refused   -> tried afresh
    server killed in between  -> performed under the id that the first was given, so it finds what that one did

Only answers below 400 are kept, sealed, because some hold a key that is shown once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Awaitable, Callable

from fastapi import Response

from controlplane.errors import ApiError, Slug, field_problem, invalid_request
from controlplane.ids import new_id
from controlplane.runs.journal import Journal
from controlplane.secrets.sealing import SealBroken, Sealer
from controlplane.store import Store, Write, upsert
from controlplane.tables import IdempotencyRow

_IN_FLIGHT = 0
_PURGE_EVERY = 256  # requests
_KEPT_HEADERS = ("content-type", "location")
_Name = tuple[str, str, str]
Perform = Callable[[str], Awaitable[Response]]


class Idempotency:
    """One per process: what is in flight is in memory, what was answered in the database."""

    def __init__(self, store: Store, journal: Journal, sealer: Sealer, keep_seconds: float) -> None:
        self._store = store
        self._journal = journal
        self._sealer = sealer
        self._keep_ns = int(keep_seconds * 1e9)
        self._running: set[_Name] = set()
        self._seen = 0

    async def once(self, tenant: str, principal: str, key: str, request: str, perform: Perform) -> Response:
        """The answer of ``perform``, or the stored one; ``request`` says what is asked, in full.

        ``perform`` gets an id that is the same however often this request has to be performed: what it creates has
        that id, or is harmless to create again.

        Raises:
            ApiError: idempotency-in-flight, idempotency-mismatch, invalid-request, or what ``perform`` raises.
        """
        if not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
            raise invalid_request(
                [field_problem("", "Idempotency-Key must be 1 to 255 printable characters", "send a UUID")]
            )
        name = (tenant, principal, key)
        if name in self._running:
            raise ApiError(
                Slug.IDEMPOTENCY_IN_FLIGHT, "Ask again when the first is done.", retryable=True, retry_after=1
            )
        self._running.add(name)
        try:
            return await self._once(name, hashlib.sha256(request.encode()).hexdigest(), perform)
        finally:
            self._running.discard(name)

    async def _once(self, name: _Name, digest: str, perform: Perform) -> Response:
        known = await self._store.read(lambda session: session.get(IdempotencyRow, name))
        now = time.time_ns()
        if known is not None and known.created_ns + self._keep_ns > now:
            if known.request_digest != digest:
                raise ApiError(Slug.IDEMPOTENCY_MISMATCH, "Use a new key for a new request.")
            if known.status != _IN_FLIGHT:
                return self._replay(name, known)
            return await self._perform(name, digest, known.body, now, perform)
        if self._seen % _PURGE_EVERY == 0:
            self._journal.append([Write("DELETE FROM idempotency WHERE created_ns<=?", (now - self._keep_ns,))])
        self._seen += 1
        reserved = new_id("id").removeprefix("id_")
        await self._store_row(name, digest, _IN_FLIGHT, reserved, now)
        return await self._perform(name, digest, reserved, now, perform)

    async def _perform(self, name: _Name, digest: str, reserved: str, now: int, perform: Perform) -> Response:
        try:
            response = await perform(reserved)
        except Exception:
            await self._forget(name)
            raise
        if response.status_code >= 400:
            await self._forget(name)
            return response
        await self._store_row(name, digest, response.status_code, self._sealed(name, response), now)
        return response

    async def _store_row(self, name: _Name, digest: str, status: int, body: str, now: int) -> None:
        row = {
            "tenant": name[0],
            "principal": name[1],
            "key": name[2],
            "request_digest": digest,
            "status": status,
            "body": body,
            "created_ns": now,
        }
        await self._journal.write([upsert(IdempotencyRow, row)])

    async def _forget(self, name: _Name) -> None:
        await self._journal.write([Write("DELETE FROM idempotency WHERE tenant=? AND principal=? AND key=?", name)])

    def _sealed(self, name: _Name, response: Response) -> str:
        headers = {header: response.headers[header] for header in _KEPT_HEADERS if header in response.headers}
        kept = {"headers": headers, "body": bytes(response.body).decode()}
        sealed = self._sealer.seal(json.dumps(kept).encode(), _bound_to(name))
        return f"{self._sealer.key_id}:{base64.b64encode(sealed).decode()}"

    def _replay(self, name: _Name, row: IdempotencyRow) -> Response:
        key_id, _, encoded = row.body.partition(":")
        try:
            kept = json.loads(self._sealer.open(key_id, base64.b64decode(encoded), _bound_to(name)))
        except SealBroken:
            raise ApiError(Slug.CONFLICT, "The stored answer was sealed with another key. Use a new key.") from None
        headers = kept["headers"] | {"Idempotency-Replayed": "true"}
        return Response(kept["body"].encode(), status_code=row.status, headers=headers)


def _bound_to(name: _Name) -> bytes:
    return json.dumps(["idempotency", *name]).encode()
