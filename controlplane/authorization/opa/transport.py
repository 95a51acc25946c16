"""opa-python-client with what a policy decision cannot use taken out of it.

The package repeats what failed (a 500 three times, with pauses longer than our deadline), follows redirects with the
token, reads answers of any length and knows no unix sockets. Only the way a request is made is replaced here, so that
its own ``query_rule`` asks the question; what comes back is either JSON from a 200 or an exception of ours.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec
from opa_client import AsyncOpaClient

from controlplane.authorization.opa.address import OpaAddress
from controlplane.authorization.values import Question, canonical

LONGEST_ANSWER_BYTES = 1 << 20
CONNECTIONS = 64
# OPA's words for a rule that is wrong, whoever asks and however often.
_RULE_FAULTS = frozenset({"eval_conflict_error", "eval_type_error", "eval_builtin_error"})
_LONGEST_WORDS = 2000
# A builtin that fails is an error and not "undefined": a deny rule must not vanish with it.
_PARAMETERS = {"provenance": True, "strict-builtin-errors": True}


class OpaUnreachable(Exception):
    """The platform failed: no connection, no permission, an error of the server. Ask again later."""


class OpaWrong(Exception):
    """An answer came that can be no decision. Asking again would not help."""


class RuleFailed(Exception):
    """OPA says that a rule contradicts itself or cannot be evaluated with this input; in its words."""


class OpaTransport(AsyncOpaClient):
    """One OPA. ``open`` before ``ask``; the caller bounds the time and closes it."""

    def __init__(self, address: OpaAddress, token: str) -> None:
        # The package does not annotate it.
        initialise: Callable[..., None] = super().__init__
        initialise(host=address.host, port=address.port, ssl=address.is_https, token=token, retries=0)
        self._socket = address.socket

    async def open(self) -> None:
        """Make the connection pool. Nothing is connected yet."""
        await self._init_session()

    async def close(self) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask(self, question: Question) -> dict[str, Any]:
        """OPA's whole answer to one question: ``result`` if the rule is defined, and ``provenance``.

        Raises: OpaUnreachable, OpaWrong, RuleFailed."""
        # The encoded question is sent as it is: its digest is over the same bytes.
        return await self._query(msgspec.Raw(question.encoded()), question.entry.value, "decision")

    async def ask_many(self, questions: Sequence[Question]) -> dict[str, Any]:
        """As ``ask``, with a ``result`` that maps each question's position, as text, to its decision.

        Raises: OpaUnreachable, OpaWrong; RuleFailed if the rule of any of them fails."""
        asked = [
            {"about": one.entry.value.removeprefix("runtime."), "input": msgspec.Raw(one.encoded())}
            for one in questions
        ]
        return await self._query(asked, "stockade.batch", "answers")

    async def ask_revision(self) -> dict[str, Any]:
        """As ``ask_many``, and no question. Raises: OpaUnreachable, OpaWrong."""
        return await self._query([], "stockade.batch", "answers")

    async def _query(self, asked: Any, package: str, rule: str) -> dict[str, Any]:
        try:
            answer: Any = await self.query_rule(asked, package, rule, _PARAMETERS)
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, OSError) as problem:
            raise OpaUnreachable(f"it cannot be reached ({type(problem).__name__})") from None
        except aiohttp.ClientError as problem:
            raise OpaWrong(f"it does not speak HTTP as it should ({type(problem).__name__})") from None
        except (ValueError, RecursionError):
            raise OpaWrong("its answer is not JSON") from None
        if not isinstance(answer, dict):
            raise OpaWrong("its answer is not an object")
        return answer

    async def _init_session(self) -> None:
        self._connector: aiohttp.BaseConnector
        if self._socket:
            self._connector = aiohttp.UnixConnector(path=self._socket, limit=CONNECTIONS)
        else:
            verified = ssl.create_default_context() if self.ssl else True
            self._connector = aiohttp.TCPConnector(ssl=verified, limit=CONNECTIONS)
        self._session = aiohttp.ClientSession(
            headers=self.headers,
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            json_serialize=lambda value: canonical(value).decode(),
            # The engine's own deadline ends a request.
            timeout=aiohttp.ClientTimeout(total=None),
        )

    @asynccontextmanager
    async def _request(self, method: str, url: str, **kwargs: Any) -> AsyncIterator[_Reply]:
        if self._session is None:
            raise OpaUnreachable("the connection pool is closed")
        async with self._session.request(method, url, allow_redirects=False, **kwargs) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > LONGEST_ANSWER_BYTES:
                    raise OpaWrong(f"its answer is longer than {LONGEST_ANSWER_BYTES} bytes")
            yield _Reply(response.status, bytes(body))


class _Reply:
    """What the package's methods use of a response."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self._body = body

    def raise_for_status(self) -> None:
        """Raises: OpaUnreachable, OpaWrong, RuleFailed if it is no 200."""
        status = self.status
        if status == HTTPStatus.OK:
            return
        if status == HTTPStatus.INTERNAL_SERVER_ERROR and (words := _rule_fault(self._body)):
            raise RuleFailed(words)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise OpaUnreachable(f"it refuses to be asked (HTTP {status}): it has no policy yet, or another token")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            raise OpaUnreachable(f"it failed (HTTP {status})")
        raise OpaWrong(f"it answered with HTTP {status}")

    async def json(self) -> Any:
        """The body. Raises: ValueError, RecursionError if it is not JSON."""
        return msgspec.json.decode(self._body)


def _rule_fault(body: bytes) -> str:
    """OPA's account of a rule that failed, with the place; "" if the failure is the server's own."""
    try:
        told = msgspec.json.decode(body)
        for error in told["errors"]:
            if error["code"] in _RULE_FAULTS:
                place: Mapping[str, Any] = error.get("location") or {}
                words = f"{place.get('file', '')}:{place.get('row', '')}: {error['message']}"
                return words[:_LONGEST_WORDS]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ""
    return ""
