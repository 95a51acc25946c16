"""From what an assignment grants to files a sandbox can mount."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import anyio.to_thread
import structlog

from dataplane.artifact_cache import ArtifactCache, FetchFailed
from dataplane.backoff import insist
from dataplane.client import ControlPlane, RequestRefused
from dataplane.data_roots import DataRefused, DataRoots
from dataplane.protocol import ArtifactRef, Assignment, InputGrant
from sandboxes.errors import DriverFailed
from sandboxes.spec import Mount

log = structlog.get_logger("stockade.node")
KEPT_BYTES = 1024 * 1024
"""What is smaller is fetched sooner than it is looked for."""


class InputRefused(Exception):
    """The step names an input that is not there or may not be had: its own fault, and trying again changes nothing."""


class Inputs:
    """Mounts for an assignment's grants; what comes from the cache stays there until ``stack`` closes."""

    def __init__(self, control_plane: ControlPlane, cache: ArtifactCache, roots: DataRoots) -> None:
        self._control_plane = control_plane
        self._cache = cache
        self._roots = roots

    async def keep(self, made: ArtifactRef, source: AsyncIterator[bytes]) -> bool:
        """Keep what was made here and is stored, if it is worth it, so that the next step here need not fetch it."""
        if made.size_bytes < KEPT_BYTES:
            return False
        try:
            async with self._cache.hold(made.digest, source):
                return True
        except (FetchFailed, DriverFailed, OSError) as error:  # it is stored: nobody needs the copy
            log.info("output not kept here", artifact=made.id, error=str(error)[:300])
            return False

    async def mounts(self, assignment: Assignment, grants: list[InputGrant], stack: AsyncExitStack) -> list[Mount]:
        """One mount for each grant. Raises ``InputRefused``."""
        return [await self._mount(assignment, grant, stack) for grant in grants]

    async def _mount(self, assignment: Assignment, grant: InputGrant, stack: AsyncExitStack) -> Mount:
        if not grant.name or grant.name in (".", "..") or "/" in grant.name or "\0" in grant.name:
            raise InputRefused(f"input name {grant.name!r} is not a file name")
        try:
            if grant.data is not None:
                return Mount(name=grant.name, source=await anyio.to_thread.run_sync(self._roots.locate, grant.data))
            if grant.artifact is None:
                raise InputRefused(f"input {grant.name!r} names neither an artifact nor data")
            fetch = partial(self._held, assignment, grant.artifact, grant.digest, stack)
            return Mount(name=grant.name, source=await insist(fetch))
        except (DataRefused, RequestRefused) as error:
            raise InputRefused(f"input {grant.name!r}: {error}") from error

    async def _held(self, assignment: Assignment, artifact: str, digest: str | None, stack: AsyncExitStack) -> Path:
        source = self._control_plane.download(artifact, assignment.attempt, assignment.fence)
        return await stack.enter_async_context(self._cache.hold(digest, source))
