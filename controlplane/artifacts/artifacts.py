"""References to stored bytes. An id opens them inside its tenant; a digest alone opens nothing."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from controlplane.artifacts.blobs import BlobStore
from controlplane.ids import new_id
from controlplane.runs.journal import Journal
from controlplane.store import Store, canonical, insert
from controlplane.tables import ArtifactRow
from controlplane.times import rfc3339

NAME_PATTERN = r"^[^\x00-\x1f\x7f/\\]{1,255}$"
MEDIA_TYPE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,63}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,63}$"


class Artifacts:
    """Puts and opens artifacts. ``max_bytes`` bounds one artifact."""

    def __init__(self, store: Store, journal: Journal, blobs: BlobStore, max_bytes: int) -> None:
        self._store = store
        self._journal = journal
        self._blobs = blobs
        self.max_bytes = max_bytes

    async def put(
        self,
        tenant: str,
        name: str,
        media_type: str,
        stream: AsyncIterator[bytes],
        run: str | None = None,
        path: str = "",
        labels: Mapping[str, Any] | None = None,
        max_bytes: int | None = None,
    ) -> dict[str, Any]:
        """Store ``stream`` and its reference, durable on return; the artifact as the API shows it.

        Raises:
            ApiError: too-large.
            JournalFailed: the reference is not stored.
        """
        digest, size = await self._blobs.write(stream, self.max_bytes if max_bytes is None else max_bytes)
        row = ArtifactRow(
            tenant=tenant,
            id=new_id("art"),
            digest=digest,
            size_bytes=size,
            media_type=media_type,
            name=name,
            run=run,
            path=path,
            labels=canonical(dict(labels or {})),
            created_ns=time.time_ns(),
        )
        await self._journal.write([insert(ArtifactRow, row.model_dump())])
        return artifact_json(row)

    async def get(self, tenant: str, artifact_id: str) -> dict[str, Any] | None:
        """The artifact as the API shows it, or None."""
        row = await self._store.read(lambda session: session.get(ArtifactRow, (tenant, artifact_id)))
        return None if row is None else artifact_json(row)

    async def open(self, tenant: str, artifact_id: str) -> tuple[dict[str, Any], AsyncIterator[bytes]] | None:
        """The artifact and its bytes in chunks, or None."""
        shown = await self.get(tenant, artifact_id)
        return None if shown is None else (shown, self._blobs.read(shown["digest"]))


def artifact_json(row: ArtifactRow) -> dict[str, Any]:
    """An artifact as the API shows it."""
    return {
        "id": row.id,
        "name": row.name,
        "digest": row.digest,
        "size_bytes": row.size_bytes,
        "media_type": row.media_type,
        "run": row.run,
        "path": row.path,
        "labels": json.loads(row.labels),
        "created_at": rfc3339(row.created_ns),
    }
