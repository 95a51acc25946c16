"""The control plane as a node sees it: a port, and its adapter over HTTP.

``dataplane.testing`` serves the double that the adapter is tested against.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec

from dataplane.flow_wire import FlowRecord
from dataplane.model_wire import ModelLog
from dataplane.protocol import (
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
ANSWER_SECONDS = 30.0
"""How long an answer may take beyond the wait that the request itself asked for."""
UPLOAD_SECONDS = 600.0
"""How long one artifact may take: its bytes go first."""
Content = Callable[[], AsyncIterator[bytes]]
"""An artifact in pieces; called once for each time it is sent."""


class ControlPlaneUnavailable(Exception):
    """No usable answer (connection, timeout, 5xx, 429): the same request may be sent again."""


class TokenRefused(Exception):
    """401: the bearer is unknown or too old."""


class RequestRefused(Exception):
    """Any other 4xx (``status``): sending the same again gains nothing."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ControlPlane(Protocol):
    """Every list is answered element by element, in order. Raises the three exceptions of this module."""

    async def register(self, request: Register) -> Registered: ...

    async def pull(self, request: PullRequest) -> PullResponse: ...

    async def authorize(self, requests: list[AuthorizeRequest]) -> list[AuthorizeAnswer]: ...

    async def record(self, results: list[CallResult]) -> list[Ack]: ...

    async def flows(self, records: list[FlowRecord]) -> list[Ack]: ...

    async def output(self, chunks: list[OutputChunk]) -> list[Ack]: ...

    async def model_logs(self, logs: list[ModelLog]) -> list[Ack]: ...

    async def upload(
        self, attempt: str, fence: int, name: str, media_type: str, data: bytes | Content
    ) -> ArtifactRef: ...

    def download(self, artifact: str, attempt: str, fence: int) -> AsyncIterator[bytes]: ...

    async def close(self) -> None: ...


_encode = msgspec.json.Encoder().encode
_registered = msgspec.json.Decoder(Registered)
_pulled = msgspec.json.Decoder(PullResponse)
_answers = msgspec.json.Decoder(list[AuthorizeAnswer])
_acks = msgspec.json.Decoder(list[Ack])
_artifact = msgspec.json.Decoder(ArtifactRef)


class HttpControlPlane:
    """The adapter. ``token`` is the bearer of every call but ``register``, which sends the join token."""

    def __init__(self, url: str, join_token: str, ca_file: Path | None = None) -> None:
        self._base = f"{url}/node/v1"
        self._join_token = join_token
        self.token = ""
        verify = ssl.create_default_context(cafile=str(ca_file)) if ca_file else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=verify, limit=64, keepalive_timeout=60),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def register(self, request: Register) -> Registered:
        return await self._post("/register", request, _registered, bearer=self._join_token)

    async def pull(self, request: PullRequest) -> PullResponse:
        return await self._post("/pull", request, _pulled, seconds=request.wait_seconds + ANSWER_SECONDS)

    async def authorize(self, requests: list[AuthorizeRequest]) -> list[AuthorizeAnswer]:
        return _same_length(requests, await self._post("/authorize", requests, _answers))

    async def record(self, results: list[CallResult]) -> list[Ack]:
        return _same_length(results, await self._post("/results", results, _acks))

    async def flows(self, records: list[FlowRecord]) -> list[Ack]:
        return _same_length(records, await self._post("/flows", records, _acks))

    async def output(self, chunks: list[OutputChunk]) -> list[Ack]:
        return _same_length(chunks, await self._post("/output", chunks, _acks))

    async def model_logs(self, logs: list[ModelLog]) -> list[Ack]:
        return _same_length(logs, await self._post("/model-logs", logs, _acks))

    async def upload(self, attempt: str, fence: int, name: str, media_type: str, data: bytes | Content) -> ArtifactRef:
        params = {"attempt": attempt, "fence": str(fence), "name": name, "media_type": media_type}
        sent = data if isinstance(data, bytes) else data()
        async with _unavailable(
            self._session.put, f"{self._base}/artifacts", params, self._headers(), sent, UPLOAD_SECONDS
        ) as response:
            return _decode(_artifact, await _checked(response))

    async def download(self, artifact: str, attempt: str, fence: int) -> AsyncIterator[bytes]:
        params = {"attempt": attempt, "fence": str(fence)}
        url = f"{self._base}/artifacts/{artifact}"
        async with _unavailable(self._session.get, url, params, self._headers(), None) as response:
            if response.status != 200:
                await _checked(response)
            async for chunk in response.content.iter_chunked(256 * 1024):
                yield chunk

    async def close(self) -> None:
        await self._session.close()

    def _headers(self, bearer: str | None = None) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.token if bearer is None else bearer}",
            "Content-Type": "application/json",
        }

    async def _post(
        self,
        path: str,
        body: Any,
        decoder: msgspec.json.Decoder[T],
        *,
        seconds: float = ANSWER_SECONDS,
        bearer: str | None = None,
    ) -> T:
        async with _unavailable(
            self._session.post, self._base + path, None, self._headers(bearer), _encode(body), seconds
        ) as response:
            return _decode(decoder, await _checked(response))


class _unavailable:
    """An aiohttp request whose connection failures, also while the body is read, are ``ControlPlaneUnavailable``."""

    def __init__(
        self,
        verb: Any,
        url: str,
        params: dict[str, str] | None,
        headers: dict[str, str],
        data: bytes | AsyncIterator[bytes] | None,
        seconds: float | None = None,
    ) -> None:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=10, sock_read=seconds or ANSWER_SECONDS)
        if verb.__name__ == "put":
            headers = headers | {"Content-Type": "application/octet-stream"}
        self._request = verb(url, params=params, headers=headers, data=data, timeout=timeout, allow_redirects=False)

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            response: aiohttp.ClientResponse = await self._request.__aenter__()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ControlPlaneUnavailable(_said(error)) from error
        return response

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        await self._request.__aexit__(kind, error, trace)
        if isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
            raise ControlPlaneUnavailable(_said(error)) from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


async def _checked(response: aiohttp.ClientResponse) -> bytes:
    """The body of a 2xx; anything else as the exception that says what can be done about it."""
    body = await response.read()
    if 200 <= response.status < 300:
        return body
    detail = f"HTTP {response.status} from {response.url.path}: {body[:300].decode(errors='replace')}"
    if response.status == 401:
        raise TokenRefused(detail)
    if response.status >= 500 or response.status in (408, 425, 429):
        raise ControlPlaneUnavailable(detail)
    raise RequestRefused(detail, response.status)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise ControlPlaneUnavailable(f"answer not understood: {error}") from error


def _same_length(sent: list[Any], answers: list[T]) -> list[T]:
    if len(sent) != len(answers):
        raise ControlPlaneUnavailable(f"{len(sent)} messages but {len(answers)} answers")
    return answers
