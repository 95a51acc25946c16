"""How the node's application is reached: a tunnel that the node dials and keeps, and a port where it listens."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import anyio
import anyio.to_thread
import structlog
from aiohttp import web

from dataplane.backoff import Backoff
from dataplane.config import Listen
from dataplane.tunnel.frames import MESSAGE_BYTES_MOST, PROTOCOL, FrameBroken
from dataplane.tunnel.mux import Accept, Mux

CONNECT_SECONDS = 10.0
HEARTBEAT_SECONDS = 10.0
AGAIN_MOST_SECONDS = 5.0
STEADY_SECONDS = 30.0
log = structlog.get_logger("stockade.node")


class Reach:
    """Serves ``app`` until cancelled. ``token`` is the node's bearer now."""

    def __init__(
        self,
        app: web.Application,
        url: str,
        token: Callable[[], str],
        *,
        ca_file: Path | None = None,
        listen: Listen | None = None,
    ) -> None:
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, handle_signals=False, shutdown_timeout=2.0
        )
        self._url = url
        self._token = token
        self._ca_file = ca_file
        self._listen = listen
        self.is_connected = asyncio.Event()
        """Set while the tunnel stands."""

    async def serve(self) -> None:
        """Dial, and dial again."""
        await self._runner.setup()
        try:
            if self._listen is not None:
                where = self._listen
                context = await anyio.to_thread.run_sync(where.ssl_context)
                await web.TCPSite(self._runner, where.host, where.port, ssl_context=context).start()
            await self._keep_dialled()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self._runner.cleanup()

    async def _keep_dialled(self) -> None:
        server = self._runner.server
        assert server is not None  # noqa: S101 - it was set up
        verify = ssl.create_default_context(cafile=str(self._ca_file)) if self._ca_file else True
        backoff = Backoff(AGAIN_MOST_SECONDS)
        clock = asyncio.get_running_loop().time
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=verify), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        ) as session:
            while True:
                began = clock()
                try:
                    await self._tunnel(session, server)
                    why = "it was closed"
                except (aiohttp.ClientError, TimeoutError, OSError, FrameBroken) as error:
                    why = f"{type(error).__name__}: {error}"
                finally:
                    self.is_connected.clear()
                if clock() - began > STEADY_SECONDS:
                    backoff.reset()
                log.info("the tunnel ended; dialling again", why=why[:300])
                await backoff.wait()

    async def _tunnel(self, session: aiohttp.ClientSession, accept: Accept) -> None:
        async with session.ws_connect(
            f"{self._url}/node/v1/tunnel",
            headers={"Authorization": f"Bearer {self._token()}"},
            protocols=(PROTOCOL,),
            heartbeat=HEARTBEAT_SECONDS,
            max_msg_size=MESSAGE_BYTES_MOST,
            compress=0,
            timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
        ) as socket:
            if socket.protocol != PROTOCOL:
                raise FrameBroken("the control plane does not speak this tunnel's protocol")
            mux = Mux(socket.send_bytes, accept)
            self.is_connected.set()
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(_send, mux, group.cancel_scope)
                    await _receive(mux, socket)
                    group.cancel_scope.cancel()
            finally:
                mux.end()


async def _send(mux: Mux, scope: anyio.CancelScope) -> None:
    with suppress(aiohttp.ClientError, ConnectionError, OSError):
        await mux.serve()
    scope.cancel()


async def _receive(mux: Mux, socket: aiohttp.ClientWebSocketResponse) -> None:
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise FrameBroken(f"a message of type {message.type.name}")
        mux.received(message.data)
