"""GETs of model servers on loopback, bounded in time and size. What they answer is nobody's word but theirs."""

from __future__ import annotations

import aiohttp

from dataplane.models.server import LOOPBACK, ServerSilent

ANSWER_MOST_BYTES = 1024 * 1024


class Asking:
    """One pool of connections; close it."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, port: int, path: str, seconds: float) -> bytes:
        """The body of a 200. Raises: ServerSilent."""
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.get(
                f"http://{LOOPBACK}:{port}{path}", timeout=timeout, allow_redirects=False
            ) as response:
                body = bytearray()
                async for chunk in response.content.iter_chunked(65_536):
                    body += chunk
                    if len(body) > ANSWER_MOST_BYTES:
                        raise ServerSilent(f"{path} answers with more than {ANSWER_MOST_BYTES:,} bytes")
                if response.status != 200:
                    raise ServerSilent(f"{path} answers {response.status}")
                return bytes(body)
        except TimeoutError:
            raise ServerSilent(f"{path} does not answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ServerSilent(f"{path}: {type(error).__name__}") from None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
