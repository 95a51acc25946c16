"""Who the node is to the control plane now: a wrapper that registers, and registers again where that is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import anyio

from dataplane.client import (
    Content,
    ControlPlane,
    ControlPlaneUnavailable,
    HttpControlPlane,
    RequestRefused,
    TokenRefused,
)
from dataplane.config import ConfigError
from dataplane.flow_wire import FlowRecord
from dataplane.model_wire import ModelLog
from dataplane.protocol import (
    FEATURES,
    Ack,
    ArtifactRef,
    AuthorizeAnswer,
    AuthorizeRequest,
    CallResult,
    OutputChunk,
    PullRequest,
    PullResponse,
    Register,
    Registered,
)

T = TypeVar("T")


class Registration(ControlPlane):
    """The port again; a call refused for its token registers once more (same boot) and is repeated."""

    def __init__(
        self,
        inner: HttpControlPlane,
        describe: Callable[[], Register],
        accepted: Callable[[Registered], None],
    ) -> None:
        self._inner = inner
        self._describe = describe
        self._accepted = accepted
        self._lock = anyio.Lock()
        self._generation = 0

    async def join(self) -> Registered:
        """Register. Raises ``ConfigError`` where the control plane will never take this node as it is."""
        try:
            answer = await self._inner.register(self._describe())
        except TokenRefused as error:
            raise ConfigError(
                f"the control plane refused the join token ({error}): make a new one with `stockade node join-token`"
            ) from error
        except RequestRefused as error:
            raise ConfigError(f"the control plane refused this node: {error}") from error
        if missing := sorted(set(answer.requires) - FEATURES):
            raise ConfigError(
                f"the control plane requires {', '.join(missing)}, which this node lacks: update the node"
            )
        self._inner.token = answer.token
        self._generation += 1
        self._accepted(answer)
        return answer

    async def rejoin(self, generation: int) -> None:
        """Register again unless somebody did since ``generation``."""
        async with self._lock:
            if generation != self._generation:
                return
            try:
                await self.join()
            except ConfigError as error:  # at the start that is the end; a node with work goes on asking
                raise ControlPlaneUnavailable(str(error)) from error

    @property
    def generation(self) -> int:
        return self._generation

    async def _call(self, operation: Callable[[], Awaitable[T]]) -> T:
        generation = self._generation
        try:
            return await operation()
        except TokenRefused:
            await self.rejoin(generation)
            return await operation()

    async def register(self, request: Register) -> Registered:
        return await self._inner.register(request)

    async def pull(self, request: PullRequest) -> PullResponse:
        return await self._call(lambda: self._inner.pull(request))

    async def authorize(self, requests: list[AuthorizeRequest]) -> list[AuthorizeAnswer]:
        return await self._call(lambda: self._inner.authorize(requests))

    async def record(self, results: list[CallResult]) -> list[Ack]:
        return await self._call(lambda: self._inner.record(results))

    async def flows(self, records: list[FlowRecord]) -> list[Ack]:
        return await self._call(lambda: self._inner.flows(records))

    async def output(self, chunks: list[OutputChunk]) -> list[Ack]:
        return await self._call(lambda: self._inner.output(chunks))

    async def model_logs(self, logs: list[ModelLog]) -> list[Ack]:
        return await self._call(lambda: self._inner.model_logs(logs))

    async def upload(self, attempt: str, fence: int, name: str, media_type: str, data: bytes | Content) -> ArtifactRef:
        return await self._call(lambda: self._inner.upload(attempt, fence, name, media_type, data))

    async def download(self, artifact: str, attempt: str, fence: int) -> AsyncIterator[bytes]:
        generation = self._generation
        begun = False
        try:
            async for chunk in self._inner.download(artifact, attempt, fence):
                begun = True
                yield chunk
            return
        except TokenRefused:
            if begun:
                raise
            await self.rejoin(generation)
        async for chunk in self._inner.download(artifact, attempt, fence):
            yield chunk

    async def close(self) -> None:
        await self._inner.close()
