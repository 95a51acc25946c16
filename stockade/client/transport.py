"""What both clients share: headers, how a lost connection is retried, and an error answer made an exception."""

from __future__ import annotations

import json
import os
import random
import ssl
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx2

from stockade import __version__
from stockade.client.calls import Call
from stockade.client.errors import NotStockade, StockadeError

T = TypeVar("T")
TRIES = 6
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
RETRY_STATUS = frozenset({502, 503, 504})


def options(url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    """What an httpx2 client is made with. A proxy from the environment never sees loopback's key.

    ``SSL_CERT_FILE`` names a private authority, on loopback as well.
    """
    headers = {"User-Agent": f"stockade/{__version__}", "Accept": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    loopback = httpx2.URL(url).host in ("127.0.0.1", "localhost", "::1")
    made = {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout, "trust_env": not loopback}
    if loopback and (authority := os.environ.get("SSL_CERT_FILE")) and url.startswith("https:"):
        made["verify"] = ssl.create_default_context(cafile=authority)
    return made


def request_arguments(call: Call[Any]) -> dict[str, Any]:
    """The call as arguments of ``httpx2.Client.request``."""
    headers = {"Content-Type": call.content_type} if call.content is not None else {}
    if call.idempotency_key is not None:
        headers["Idempotency-Key"] = call.idempotency_key
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.query),
        "content": call.content,
        "headers": headers,
    }


def pauses() -> Iterator[float]:
    """Seconds to wait between the tries of one call, doubled and jittered."""
    pause = FIRST_PAUSE_SECONDS
    for _ in range(TRIES - 1):
        yield pause * random.uniform(0.7, 1.3)  # noqa: S311  (spreads clients, guards nothing)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def worth_repeating(call: Call[Any], response: httpx2.Response) -> bool:
    """Whether the server, or what stands before it, is only away for a moment."""
    if not call.repeatable or response.status_code not in RETRY_STATUS:
        return False
    return response.headers.get("should-retry", response.headers.get("x-should-retry", "true")) != "false"


def answer(call: Call[T], url: str, status: int, body: bytes) -> T:
    """What the call reads of a success. Raises ``StockadeError``, or ``NotStockade`` for another's answer."""
    if status >= 400:
        raise problem(url, status, body)
    try:
        if status >= 300:
            raise ValueError(f"HTTP {status}")
        return call.read(body)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # pydantic's report has many lines and quotes the body; its first line says which model did not fit.
        why = (str(error).splitlines() or [""])[0][:120]
        raise NotStockade(url, f"{call.method} {call.path} was answered by something else ({why})") from None


def problem(url: str, status: int, body: bytes) -> StockadeError:
    """The error answer as an exception, also where something other than Stockade answered."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        value = {"title": f"HTTP {status}", "detail": body[:200].decode(errors="replace")}
    return StockadeError(status, value, url)
