"""The forwarder over real sockets: granted hosts only, at judged addresses, by the handshake's name, within caps."""

from __future__ import annotations

import asyncio
import datetime
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dataplane.attempts import Attempt
from dataplane.flow_wire import FlowRecord
from dataplane.forwarder.flow_log import FlowLog
from dataplane.forwarder.forwarder import Caps, Forwarder
from dataplane.leases import Lease
from dataplane.protocol import Ack, Assignment, CodeWork, NetworkHost, SandboxRequest

pytestmark = pytest.mark.anyio
HOST = "api.example.com"
Meet = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A web server of one request."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    await writer.drain()
    writer.close()


@asynccontextmanager
async def served(meet: Meet, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=context)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


class Bench:
    """One attempt's forwarder; ``addresses`` is the world's name service."""

    def __init__(self, *hosts: NetworkHost, caps: Caps | None = None) -> None:
        self.records: list[FlowRecord] = []
        self.addresses: dict[str, list[str]] = {HOST: ["127.0.0.1"]}
        self.now = 0.0
        self.lease = Lease(clock=lambda: self.now)
        self.lease.configure(15, 900)
        self.lease.renew(0)
        sandbox = SandboxRequest(tier="jail", image="python", memory_bytes=1, wall_seconds=1)
        work = CodeWork(language="python", source="", sandbox=sandbox, network=list(hosts))
        attempt = Attempt(
            Assignment(attempt="att_1", fence=3, run="run_1", path="a", number=1, wall_seconds=1, code=work)
        )
        self.flows = FlowLog(self._keep)
        self.forwarder = Forwarder(attempt, lease=self.lease, flows=self.flows, lookup=self._lookup, caps=caps)

    async def _lookup(self, host: str) -> list[str]:
        if host not in self.addresses:
            raise socket.gaierror(host)
        return self.addresses[host]

    async def _keep(self, records: list[FlowRecord]) -> list[Ack]:
        self.records += records
        return [Ack(ok=True)] * len(records)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection of the guest's; its record is in ``records`` afterwards."""
        guest, node = socket.socketpair()
        node.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=guest)
        async with anyio.create_task_group() as group:
            group.start_soon(self.flows.serve)
            served = anyio.Event()

            async def serve() -> None:
                with node:
                    await self.forwarder(node)
                served.set()

            group.start_soon(serve)
            try:
                with anyio.fail_after(10):
                    yield reader, writer
                    writer.close()
                    await served.wait()
                    await self.flows.flushed("att_1", 3, 5)
            finally:
                writer.close()
            group.cancel_scope.cancel()

    async def ask(self, request: bytes) -> bytes:
        """Everything that comes back."""
        async with self.connection() as (reader, writer):
            writer.write(request)
            return await reader.read()

    async def refusal(self, request: bytes) -> dict[str, Any]:
        answer = await self.ask(request)
        head, _, body = answer.partition(b"\r\n\r\n")
        told: dict[str, Any] = json.loads(body)
        assert f"X-Stockade-Reason: {told['code']}".encode() in head and told["type"] == "egress_refused"
        assert told["fix"] and self.records[-1].ended == told["code"]
        return told


def host(port: int, *, name: str = HOST, private: bool = True) -> NetworkHost:
    return NetworkHost(host=name, port=port, decision="dec_1", private_allowed=private)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server that is ``HOST``, and a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST), x509.DNSName("other.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder: Path = tmp_path_factory.mktemp("certificates")
    public, private = folder / "public.pem", folder / "private.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(public, private)
    return server, ssl.create_default_context(cafile=str(public))


async def test_a_plain_request_reaches_its_host_and_is_recorded() -> None:
    async with served(hello) as port:
        bench = Bench(host(port))
        answer = await bench.ask(f"GET http://{HOST}:{port}/x HTTP/1.1\r\n\r\n".encode())
    assert answer.endswith(b"hello")
    (record,) = bench.records
    assert (record.host, record.port, record.method, record.address) == (HOST, port, "GET", "127.0.0.1")
    assert record.received_bytes == len(answer) and record.sent_bytes > 40
    assert (record.decision, record.ended, record.attempt, record.fence, record.number) == ("dec_1", "", "att_1", 3, 1)


async def test_what_follows_the_body_of_a_plain_request_goes_nowhere() -> None:
    seen = bytearray()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(4))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.drain()
        writer.write_eof()
        seen.extend(await reader.read())
        writer.close()

    async with served(meet) as port:
        request = f"POST http://{HOST}:{port}/ HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody".encode()
        await Bench(host(port)).ask(request + b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n")
    assert seen.endswith(b"\r\n\r\nbody") and b"other.example" not in seen


async def test_a_tunnel_whose_handshake_names_the_host_passes(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with served(hello, contexts[0]) as port:
        bench = Bench(host(port))
        async with bench.connection() as (reader, writer):
            writer.write(f"CONNECT {HOST}:{port} HTTP/1.1\r\n\r\n".encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await writer.start_tls(contexts[1], server_hostname=HOST)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert (await reader.read()).endswith(b"hello")
    assert bench.records[0].method == "CONNECT" and bench.records[0].ended == ""


@pytest.mark.parametrize(("name", "code"), [("other.example", "server_name_differs"), (None, "server_name_missing")])
async def test_a_tunnel_whose_handshake_names_another_host_or_none_is_refused(
    name: str | None, code: str, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    met = False

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met = bool(await reader.read(1))
        writer.close()

    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = client.wrap_bio(incoming, outgoing, server_hostname=name)
    async with served(meet) as port:
        bench = Bench(host(port))
        async with bench.connection() as (reader, writer):
            writer.write(f"CONNECT {HOST}:{port} HTTP/1.1\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            with pytest.raises(ssl.SSLWantReadError):
                handshake.do_handshake()
            writer.write(outgoing.read())
            incoming.write(await reader.read())
            with pytest.raises(ssl.SSLError, match=r"(?i)access.denied"):
                handshake.do_handshake()
    assert bench.records[0].ended == code and not met


async def test_what_is_not_tls_does_not_pass_through_a_tunnel() -> None:
    async with served(silent) as port:
        bench = Bench(host(port))
        async with bench.connection() as (reader, writer):
            writer.write(f"CONNECT {HOST}:{port} HTTP/1.1\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"SSH-2.0-x\r\n")
            writer.write_eof()
            assert (await reader.read())[:1] == b"\x15", "an alert"
    assert bench.records[0].ended == "not_tls"


async def test_a_host_or_port_that_was_not_granted_is_refused_with_what_to_write() -> None:
    bench = Bench(host(443))
    told = await bench.refusal(b"CONNECT evil.example:443 HTTP/1.1\r\n\r\n")
    assert told["code"] == "host_not_granted" and '{"host": "evil.example", "ports": [443]}' in told["fix"]
    told = await bench.refusal(f"CONNECT {HOST}:22 HTTP/1.1\r\n\r\n".encode())
    assert told["code"] == "port_not_granted" and "22" in told["fix"] and "443" in told["message"]


@pytest.mark.parametrize(
    ("address", "private", "opens"),
    [
        ("127.0.0.1", False, True),
        ("10.0.0.1", False, True),
        ("169.254.169.254", False, False),
        ("169.254.169.254", True, False),
        ("::ffff:127.0.0.1", True, False),
        ("64:ff9b::7f00:1", True, False),
        ("224.0.0.1", True, False),
        ("fe80::1", True, False),
    ],
)
async def test_a_granted_name_that_leads_inside_is_refused(address: str, private: bool, opens: bool) -> None:
    bench = Bench(host(443, private=private))
    bench.addresses[HOST] = ["93.184.216.34", address]  # one bad address among good ones
    told = await bench.refusal(f"CONNECT {HOST}:443 HTTP/1.1\r\n\r\n".encode())
    assert told["code"] == "address_refused" and address in told["message"]
    assert ("--private-host" in told["fix"]) is opens


async def test_a_name_that_answers_differently_the_second_time_is_judged_a_second_time() -> None:
    async with served(hello) as port:
        bench = Bench(host(port, private=False))
        bench.addresses[HOST] = ["127.0.0.1"]
        request = f"GET http://{HOST}:{port}/ HTTP/1.1\r\n\r\n".encode()
        assert (await bench.refusal(request))["code"] == "address_refused"
        assert (await bench.refusal(request))["code"] == "address_refused"


@pytest.mark.parametrize("request_", [b"CONNECT 127.0.0.1:443 HTTP/1.1\r\n\r\n"])
async def test_a_tunnel_to_a_bare_address_is_refused(request_: bytes) -> None:
    told = await Bench(host(443, name="127.0.0.1")).refusal(request_)
    assert told["code"] == "server_name_missing"


async def test_a_name_nobody_has_and_a_service_that_is_down_are_told_apart() -> None:
    async with served(hello) as port:
        bench = Bench(host(443, name="gone.example"), host(port))
        assert (await bench.refusal(b"CONNECT gone.example:443 HTTP/1.1\r\n\r\n"))["code"] == "name_not_found"
    assert (await bench.refusal(f"CONNECT {HOST}:{port} HTTP/1.1\r\n\r\n".encode()))["code"] == "connect_failed"


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()
    except OSError:
        writer.close()


async def test_bytes_are_capped_over_all_flows_of_the_attempt() -> None:
    async with served(flood) as port:
        bench = Bench(host(port), caps=Caps(bytes_most=1_000_000))
        request = f"GET http://{HOST}:{port}/ HTTP/1.1\r\n\r\n".encode()
        assert len(await bench.ask(request)) <= 1_000_000
        assert bench.records[0].ended == "bytes_exceeded"
        assert (await bench.refusal(request))["code"] == "bytes_exceeded"
    assert sum(one.received_bytes + one.sent_bytes for one in bench.records) <= 1_000_000


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def test_a_flow_that_says_nothing_is_ended() -> None:
    async with served(silent) as port:
        bench = Bench(host(port), caps=Caps(idle_seconds=0.05, request_seconds=0.05))
        assert await bench.ask(f"GET http://{HOST}:{port}/ HTTP/1.1\r\n\r\n".encode()) == b""
        assert bench.records[0].ended == "idle"
        assert (await bench.refusal(b"GET http://"))["code"] == "idle"


async def test_nothing_leaves_without_the_lease_and_its_end_ends_every_flow() -> None:
    met = anyio.Event()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        met.set()
        await silent(reader, writer)

    async with served(meet) as port:
        bench = Bench(host(port))
        async with bench.connection() as (reader, writer):
            writer.write(f"GET http://{HOST}:{port}/ HTTP/1.1\r\n\r\n".encode())
            await met.wait()
            bench.now = 16
            bench.lease.stop_effects()
            assert await reader.read() == b""
        assert bench.records[0].ended == "lease_lapsed"
        told = await bench.refusal(f"GET http://{HOST}:{port}/ HTTP/1.1\r\n\r\n".encode())
        assert told["code"] == "lease_lapsed"


async def test_no_more_flows_than_records() -> None:
    bench = Bench(host(443), caps=Caps(flows_most=2))
    request = b"CONNECT evil.example:443 HTTP/1.1\r\n\r\n"
    answers = [await bench.ask(request) for _ in range(3)]
    assert [b"flows_exceeded" in one for one in answers] == [False, False, True] and len(bench.records) == 2


async def test_a_head_without_end_is_refused() -> None:
    told = await Bench(host(443)).refusal(b"GET http://x/ HTTP/1.1\r\nA: " + b"x" * 20_000)
    assert told["code"] == "bad_request"


class Endless(socket.socket):
    """A side that always has something more to say."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return b"x" * 64


async def test_a_guest_that_never_pauses_leaves_the_node_its_turn() -> None:
    """256 reads make the head too long, 16,384 more are drained after the refusal: each gives way, or none does."""
    bench, turns = Bench(host(80)), 0

    async def rest_of_the_node() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    guest, plain = socket.socketpair()
    with guest, Endless(fileno=plain.detach()) as node:
        node.setblocking(False)
        async with anyio.create_task_group() as group:
            group.start_soon(rest_of_the_node)
            await bench.forwarder(node)
            group.cancel_scope.cancel()
    assert turns > 10_000
