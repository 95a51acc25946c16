"""One attempt's way out: each connection of its guest read, judged, connected, carried, bounded and recorded.

Nothing the guest says decides who it is: its connections come over its sandbox's own socket. The name is resolved
here, every address judged, and what is connected to is the judged address, not the name. Inside a tunnel the TLS
handshake must name the granted host; the rest of it passes untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import structlog

from dataplane.attempts import Attempt
from dataplane.egress import CheckedResolver, EgressRefused, Lookup, check_literal
from dataplane.flow_wire import FlowRecord
from dataplane.forwarder import client_hello, request
from dataplane.forwarder.flow_log import FLOWS_MOST, FlowLog
from dataplane.forwarder.refusals import TLS_ACCESS_DENIED, Code, Refused
from dataplane.forwarder.request import ProxyRequest
from dataplane.leases import Lease
from dataplane.lookups import FewLookups
from dataplane.protocol import NetworkHost

log = structlog.get_logger("stockade.node")
_CHUNK = 65_536
_DRAINED_BYTES = 1024 * 1024
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_TLS_ONLY = "only TLS that names the granted host passes through a tunnel; use https"


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Bounds on the flows of one attempt. Bytes count in both directions."""

    bytes_most: int = 1024 * 1024 * 1024
    idle_seconds: float = 60.0
    request_seconds: float = 10.0
    connect_seconds: float = 10.0
    flows_most: int = FLOWS_MOST


@dataclass(kw_only=True)
class _Flow:
    """What is known of one connection so far."""

    host: str = ""
    port: int = 0
    method: str = ""
    address: str = ""
    decision: str = ""
    sent_bytes: int = 0
    received_bytes: int = 0
    ended: Code | None = None
    in_tunnel: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Forwarder:
    """Serves the connections of one attempt (it is a ``sandboxes.execution.ConnectionHandler``)."""

    def __init__(
        self, attempt: Attempt, *, lease: Lease, flows: FlowLog, lookup: Lookup, caps: Caps | None = None
    ) -> None:
        code = attempt.assignment.code
        self._attempt, self._lease, self._flows, self._lookup = attempt, lease, flows, FewLookups(lookup)
        self._granted: Mapping[tuple[str, int], NetworkHost] = {
            (one.host, one.port): one for one in (code.network if code is not None else ())
        }
        self._caps = caps or Caps()
        self._bytes_left = self._caps.bytes_most
        self._number = 0

    async def __call__(self, guest: socket.socket) -> None:
        """From the request to the record. Raises nothing for what the guest or the other side does."""
        flow = _Flow()
        started = self._lease.clock()
        self._number += 1
        number = self._number
        if number > self._caps.flows_most:
            await self._answer(guest, flow, _too_many(self._caps.flows_most))
            return
        try:
            with self._lease.guard() as guard:
                await self._serve(guest, flow)
            if guard.cancelled_caught:
                flow.ended = Code.LEASE
        except Refused as refused:
            flow.ended = refused.code
            await self._answer(guest, flow, refused)
        except OSError:
            pass  # either side broke it off: the record says how far it came
        except BaseException:
            flow.ended = flow.ended or Code.ENDED
            raise
        finally:
            self._record(flow, number, self._lease.clock() - started)

    async def _serve(self, guest: socket.socket, flow: _Flow) -> None:
        if not self._lease.held():
            raise Refused(Code.LEASE, "the node may not act: its lease has lapsed", "try again in a few seconds")
        head, rest = await self._head(guest)
        asked = request.parse(head)
        flow.host, flow.port, flow.method = asked.host, asked.port, asked.method
        granted = self._grant(asked)
        flow.decision = granted.decision
        if asked.is_tunnel and rest:
            raise Refused(Code.BAD_REQUEST, "bytes came before the tunnel was open", "wait for the answer to CONNECT")
        if asked.is_tunnel and _is_address(asked.host):
            raise Refused(Code.NAME_MISSING, f"{asked.host} is an address: TLS cannot name it", "use the host's name")
        with await self._connected(asked, granted, flow) as server:
            if asked.is_tunnel:
                await self._tunnel(guest, server, asked, flow)
            else:
                await self._plain(guest, server, asked, rest, flow)

    async def _head(self, guest: socket.socket) -> tuple[bytes, bytes]:
        """The request's head, and what came with it."""
        seen = b""
        with anyio.move_on_after(self._caps.request_seconds):
            while b"\r\n\r\n" not in seen:
                data = await _received(guest, _CHUNK)
                if not data:
                    raise ConnectionResetError("no whole request")
                seen += data
                if len(seen) > request.HEAD_BYTES_MOST and b"\r\n\r\n" not in seen[: request.HEAD_BYTES_MOST]:
                    message = f"the request's head is above {request.HEAD_BYTES_MOST} bytes"
                    raise Refused(Code.BAD_REQUEST, message, "send fewer headers")
            head, _, rest = seen.partition(b"\r\n\r\n")
            return head + b"\r\n\r\n", rest
        message = f"no whole request within {self._caps.request_seconds:g} s"
        raise Refused(Code.IDLE, message, "send the request at once")

    def _grant(self, asked: ProxyRequest) -> NetworkHost:
        granted = self._granted.get((asked.host, asked.port))
        if granted is not None:
            return granted
        ports = sorted(port for host, port in self._granted if host == asked.host)
        if ports:
            raise Refused(
                Code.PORT_NOT_GRANTED,
                f"port {asked.port} of {asked.host} was not granted to this step, only {', '.join(map(str, ports))}",
                f"add {asked.port} to the host's ports in the step's sandbox.network",
            )
        raise Refused(
            Code.HOST_NOT_GRANTED,
            f"the host {asked.host} was not granted to this step",
            f'add {{"host": "{asked.host}", "ports": [{asked.port}]}} to the step\'s sandbox.network',
        )

    async def _connected(self, asked: ProxyRequest, granted: NetworkHost, flow: _Flow) -> socket.socket:
        """A connection to an address that may be connected to."""
        try:
            check_literal(asked.host, private_allowed=granted.private_allowed)
            resolver = CheckedResolver(private_allowed=granted.private_allowed, lookup=self._lookup)
            with anyio.fail_after(self._caps.connect_seconds):
                found = await resolver.resolve(asked.host, asked.port)
        except EgressRefused as refused:
            at = f"{asked.host}:{asked.port}"
            listed = f"whoever starts the control plane may list it: `stockade up --private-host {at}`"
            fix = listed if refused.listable else "no setting opens it; reach a public address"
            raise Refused(Code.ADDRESS_REFUSED, str(refused), fix) from None
        except (OSError, UnicodeError):
            raise Refused(Code.NAME_NOT_FOUND, f"{asked.host} was not found", "check the name") from None
        for one in found:
            server = socket.socket(one["family"], socket.SOCK_STREAM)
            server.setblocking(False)
            try:
                with anyio.fail_after(self._caps.connect_seconds):
                    await asyncio.get_running_loop().sock_connect(server, (one["host"], asked.port))
            except OSError:
                server.close()
            except BaseException:
                server.close()
                raise
            else:
                flow.address = one["host"]
                return server
        message = f"none of the {len(found)} addresses of {asked.host} answers on port {asked.port}"
        raise Refused(Code.CONNECT_FAILED, message, "check that the service is up and reached from the node")

    async def _tunnel(self, guest: socket.socket, server: socket.socket, asked: ProxyRequest, flow: _Flow) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(guest, _ESTABLISHED)
        flow.in_tunnel = True
        hello = await self._hello(guest, asked.host)
        self._count(flow, sent=len(hello))
        await loop.sock_sendall(server, hello)
        await self._carry(guest, server, flow, None)

    async def _hello(self, guest: socket.socket, host: str) -> bytes:
        """The bytes of a handshake that names ``host``."""
        reader, seen = client_hello.HelloReader(), bytearray()
        with anyio.move_on_after(self._caps.request_seconds):
            while True:
                data = await _received(guest, _CHUNK)
                if not data:
                    raise ConnectionResetError("no whole handshake")
                seen += data
                try:
                    hello = reader.feed(data)
                except client_hello.NotTls as not_tls:
                    raise Refused(
                        Code.NOT_TLS, f"what came through the tunnel is not TLS: {not_tls}", _TLS_ONLY
                    ) from None
                if hello is not None:
                    _check_name(hello, host)
                    return bytes(seen)
        raise Refused(Code.IDLE, f"no TLS handshake within {self._caps.request_seconds:g} s", _TLS_ONLY)

    async def _plain(
        self, guest: socket.socket, server: socket.socket, asked: ProxyRequest, rest: bytes, flow: _Flow
    ) -> None:
        body = rest[: asked.body_bytes]
        self._count(flow, sent=len(asked.head) + len(body))
        await asyncio.get_running_loop().sock_sendall(server, asked.head + body)
        await self._carry(guest, server, flow, asked.body_bytes - len(body))

    async def _carry(self, guest: socket.socket, server: socket.socket, flow: _Flow, body_left: int | None) -> None:
        """Both directions until both have ended, or the server has. ``body_left``: no more than that to the server."""
        with flow.scope:
            flow.scope.deadline = anyio.current_time() + self._caps.idle_seconds
            async with anyio.create_task_group() as directions:
                directions.start_soon(self._send, guest, server, flow, body_left)
                await self._receive(server, guest, flow)
                directions.cancel_scope.cancel()
        if flow.scope.cancelled_caught and flow.ended is None:
            flow.ended = Code.IDLE

    async def _send(self, guest: socket.socket, server: socket.socket, flow: _Flow, left: int | None) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while left is None or left > 0:
                data = await _received(guest, _CHUNK if left is None else min(_CHUNK, left))
                if not data or not self._fits(flow, sent=len(data)):
                    break
                await loop.sock_sendall(server, data)
                left = None if left is None else left - len(data)
            if left is None:
                server.shutdown(socket.SHUT_WR)

    async def _receive(self, server: socket.socket, guest: socket.socket, flow: _Flow) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while (data := await _received(server, _CHUNK)) and self._fits(flow, received=len(data)):
                await loop.sock_sendall(guest, data)

    def _fits(self, flow: _Flow, *, sent: int = 0, received: int = 0) -> bool:
        """Count; whether it is within the cap. If not, the flow ends."""
        try:
            self._count(flow, sent=sent, received=received)
        except Refused as refused:
            flow.ended = refused.code
            flow.scope.cancel()
            return False
        flow.scope.deadline = anyio.current_time() + self._caps.idle_seconds
        return True

    def _count(self, flow: _Flow, *, sent: int = 0, received: int = 0) -> None:
        self._bytes_left -= sent + received
        if self._bytes_left < 0:
            most = self._caps.bytes_most
            raise Refused(Code.BYTES, f"the step's flows carry at most {most} bytes together", "fetch less in one step")
        flow.sent_bytes += sent
        flow.received_bytes += received

    async def _answer(self, guest: socket.socket, flow: _Flow, refused: Refused) -> None:
        """Say no as the client can read it; what it has yet to read must not be lost to a reset."""
        with contextlib.suppress(OSError), anyio.move_on_after(self._caps.request_seconds):
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(guest, TLS_ACCESS_DENIED if flow.in_tunnel else refused.response())
            guest.shutdown(socket.SHUT_WR)
            left = _DRAINED_BYTES
            while left > 0 and (data := await _received(guest, _CHUNK)):
                left -= len(data)

    def _record(self, flow: _Flow, number: int, seconds: float) -> None:
        attempt, fence = self._attempt.key
        self._flows.put(
            FlowRecord(
                attempt=attempt,
                fence=fence,
                number=number,
                host=flow.host,
                port=flow.port,
                method=flow.method[:16],
                address=flow.address,
                sent_bytes=flow.sent_bytes,
                received_bytes=flow.received_bytes,
                seconds=round(seconds, 3),
                ended=str(flow.ended or ""),
                decision=flow.decision,
            )
        )


async def _received(side: socket.socket, most: int) -> bytes:
    """At most ``most`` bytes. The rest of the node has its turn first, and deadlines too: a side that always has
    something would otherwise never let go of the loop.
    """
    await anyio.lowlevel.checkpoint()
    return await asyncio.get_running_loop().sock_recv(side, most)


def _check_name(hello: client_hello.ClientHello, host: str) -> None:
    if hello.is_encrypted:
        fix = "switch encrypted ClientHello off in the client"
        raise Refused(Code.NAME_HIDDEN, "the handshake hides which server it is for", fix)
    if hello.server_name is None:
        raise Refused(Code.NAME_MISSING, "the handshake names no server", "use a client that sends the server's name")
    if request.canonical(hello.server_name) != host:
        message = f"the handshake names {hello.server_name[:253]}, not {host}"
        raise Refused(Code.NAME_DIFFERS, message, "ask with CONNECT for the host that is meant")


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _too_many(most: int) -> Refused:
    return Refused(Code.FLOWS, f"a step may open {most} connections", "keep connections open and reuse them")
