"""The relay's end of tunnels: a node dials ``/node/v1/tunnel`` and keeps it, streams are opened from here."""

from __future__ import annotations

from contextlib import suppress

import anyio
import structlog
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from controlplane.engine import Engine
from controlplane.nodes.inventory import Node
from controlplane.services import Services
from controlplane.tokens import hash_token
from dataplane.tunnel.frames import PROTOCOL, FrameBroken
from dataplane.tunnel.mux import Mux

REFUSED = 4401
BROKEN = 4400
log = structlog.get_logger(__name__)


def routes() -> list[WebSocketRoute]:
    """To be mounted on the application."""
    return [WebSocketRoute("/node/v1/tunnel", tunnel)]


async def tunnel(socket: WebSocket) -> None:
    """Serve until either end goes, or the node registers anew."""
    services: Services = socket.app.state.services
    engine = services.engine
    node = None if engine is None else _node(socket, engine)
    if engine is None or node is None or PROTOCOL not in socket.scope.get("subprotocols", ()):
        await socket.close(REFUSED)  # before it was accepted: HTTP 403
        return
    await socket.accept(subprotocol=PROTOCOL)
    mux = Mux(socket.send_bytes)
    session = engine.tunnels.add(node.id, mux)
    log.info("tunnel", node=node.id, name=node.name)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_send, mux, group.cancel_scope)
            group.start_soon(_end_with, node, group.cancel_scope)
            await _receive(mux, socket)
            group.cancel_scope.cancel()
    finally:
        engine.tunnels.remove(node.id, mux)
        mux.end()
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            await session.close()
            with suppress(RuntimeError):  # it is closed already
                await socket.close()


def _node(socket: WebSocket, engine: Engine) -> Node | None:
    scheme, _, token = socket.headers.get("authorization", "").partition(" ")
    return engine.inventory.by_token(hash_token(token)) if scheme.lower() == "bearer" and token else None


async def _send(mux: Mux, scope: anyio.CancelScope) -> None:
    with suppress(WebSocketDisconnect, RuntimeError, OSError):  # it went away; the reader says so too
        await mux.serve()
    scope.cancel()


async def _receive(mux: Mux, socket: WebSocket) -> None:
    try:
        while True:
            mux.received(await socket.receive_bytes())
    except WebSocketDisconnect:
        return
    except (FrameBroken, KeyError) as broken:  # KeyError: a message of text
        log.warning("a tunnel broke the protocol", why=str(broken))
        await socket.close(BROKEN)


async def _end_with(node: Node, scope: anyio.CancelScope) -> None:
    """A node that registered again dials again; one that was removed has no place here."""
    await node.replaced.wait()
    scope.cancel()
