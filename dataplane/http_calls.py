"""One authorized HTTP call: checked address, secret in a header, bounded answer, nothing secret in what comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import anyio.to_thread
import msgspec

from dataplane.egress import CheckedResolver, EgressRefused, Lookup, check_literal, system_lookup
from dataplane.protocol import ArtifactRef, HttpCall
from dataplane.scrubbing import Scrubber
from dataplane.sendable import encoded_bytes

_HTTPS = "register the tool with an https address"
_OWN_HEADERS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "idempotency-key"}
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a performed call came to: a JSON ``value``, or an ``error`` with ``type``, ``message``, ``retryable``."""

    value: Any = None
    error: dict[str, Any] | None = None
    artifacts: tuple[ArtifactRef, ...] = ()


def failed(message: str, *, retryable: bool = False, kind: str = "tool", **more: Any) -> Outcome:
    return Outcome(error={"type": kind, "message": message, "retryable": retryable, **more})


class HttpCalls:
    """Performs calls. A pool for each rule on addresses, so that no connection is reused where it would be refused."""

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
        self._sessions: dict[tuple[bool, bool], aiohttp.ClientSession] = {}

    async def perform(self, call: HttpCall, key: str) -> Outcome:
        """The outcome; never raises for what the other side does. Cancelling it closes the connection."""
        scrubber = Scrubber(secret.value for secret in call.secrets)
        try:
            return await self._perform(call, key, scrubber)
        except EgressRefused as error:
            return _refused(call, error)
        except TimeoutError:
            return failed(f"no answer within {call.timeout_seconds:g} s", retryable=True, kind="timeout")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if refused := _cause(error, EgressRefused):
                return _refused(call, refused)
            said = scrubber.text(f"{type(error).__name__}: {error}")[:500]
            return failed(f"the request failed: {said}", retryable=not isinstance(error, ValueError))

    async def _perform(self, call: HttpCall, key: str, scrubber: Scrubber) -> Outcome:
        parts = urlsplit(call.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            return failed(f"{scrubber.text(call.url)!r} is not an http(s) address", kind="policy_denied")
        # Policy lets a secret go unencrypted to loopback by name; here the address itself is looked at.
        in_clear = bool(call.secrets) and parts.scheme == "http"
        if in_clear and not call.private_allowed and not _means_loopback(parts.hostname):
            return failed(f"egress refused: a secret does not travel in clear text; {_HTTPS}", kind="policy_denied")
        check_literal(parts.hostname, private_allowed=call.private_allowed, loopback_only=in_clear)
        headers = {name: value for name, value in call.headers.items() if name.lower() not in _OWN_HEADERS}
        headers["Idempotency-Key"] = key
        body = _body(call.body, headers)
        for secret in call.secrets:
            for name in [name for name in headers if name.lower() == secret.header.lower()]:
                del headers[name]
            headers[secret.header] = secret.format.replace("{}", secret.value)
        async with self._session(call.private_allowed, in_clear).request(
            call.method.upper(),
            call.url,
            data=body,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=call.timeout_seconds),
        ) as response:
            return await _answer(call, response, scrubber)

    def _session(self, private_allowed: bool, loopback_only: bool) -> aiohttp.ClientSession:
        rule = private_allowed, loopback_only
        if rule not in self._sessions:
            self._sessions[rule] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=CheckedResolver(
                        private_allowed=private_allowed, loopback_only=loopback_only, lookup=self._lookup
                    ),
                    use_dns_cache=False,
                    keepalive_timeout=15,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._sessions[rule]

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()


def _refused(call: HttpCall, error: EgressRefused) -> Outcome:
    """With what to do: list the host, where that would help."""
    parts = urlsplit(call.url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    at = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    if call.secrets and parts.scheme == "http" and not (error.listable and _means_loopback(parts.hostname or "")):
        remedy = _HTTPS
    elif error.listable:
        remedy = (
            "whoever starts the control plane may list it: "
            f"`stockade up --private-host {at}`, or STOCKADE_PRIVATE_HOSTS={at}"
        )
    else:
        remedy = "no setting opens it; a tool may reach public addresses and listed private ones"
    return failed(f"egress refused: {error}; {remedy}", kind="policy_denied")


def _means_loopback(host: str) -> bool:
    return host in ("localhost", "127.0.0.1", "::1")


def _cause(error: BaseException, kind: type[EgressRefused]) -> EgressRefused | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kind):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _body(body: Any, headers: dict[str, str]) -> bytes | None:
    if body is None:
        return None
    has_type = any(name.lower() == "content-type" for name in headers)
    if isinstance(body, str):
        if not has_type:
            headers["Content-Type"] = "text/plain; charset=utf-8"
        return body.encode()
    if not has_type:
        headers["Content-Type"] = "application/json"
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


async def _answer(call: HttpCall, response: aiohttp.ClientResponse, scrubber: Scrubber) -> Outcome:
    if 300 <= response.status < 400 and response.status != 304:
        target = scrubber.text(response.headers.get("Location", ""))[:200]
        return failed(
            f"HTTP {response.status}: redirects are not followed (to {target!r}); register the final address",
            status=response.status,
        )
    data = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        data += chunk
        if len(data) > call.response_bytes_max:
            return failed(f"the answer is above {call.response_bytes_max} bytes; ask the service for less")
    value = await anyio.to_thread.run_sync(lambda: scrubber.json(_decoded(bytes(data), response.headers)))
    if response.status >= 400:
        said = value if isinstance(value, str) else json.dumps(value)
        return failed(
            f"HTTP {response.status} {scrubber.text(response.reason or '')}: {said[:500]}",
            retryable=response.status >= 500 or response.status == 429,
            status=response.status,
        )
    return Outcome(value=value)


def _decoded(data: bytes, headers: Mapping[str, str]) -> Any:
    """JSON where it says so and is so (``NaN`` is not), else text."""
    if "json" in headers.get("Content-Type", "").lower():
        try:
            value = msgspec.json.decode(data)
            encoded_bytes(value)
            return value
        except (ValueError, RecursionError):
            pass
    return data.decode(errors="replace")
