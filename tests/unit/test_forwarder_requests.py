"""What the forwarder reads from a guest: strictly, and never as two readers could read it differently."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.forwarder import client_hello
from dataplane.forwarder.refusals import Code, Refused
from dataplane.forwarder.request import ProxyRequest, canonical, parse
from dataplane.protocol import FAKE_GPU as PROTOCOL_FAKE_GPU
from sandboxes.spec import FAKE_GPU


def read(*lines: str) -> ProxyRequest:
    return parse("\r\n".join([*lines, "", ""]).encode("latin-1"))


def test_a_tunnel_names_host_and_port() -> None:
    asked = read("CONNECT API.Example.COM.:443 HTTP/1.1", "Host: elsewhere.example:443")
    assert (asked.is_tunnel, asked.host, asked.port) == (True, "api.example.com", 443)


def test_a_plain_request_is_sent_on_with_the_host_of_its_target_only() -> None:
    asked = read(
        "POST http://api.example.com:8080/a?b=c HTTP/1.1",
        "Host: other.example",
        "Proxy-Authorization: Basic eDp5",
        "Connection: X-Hop, keep-alive",
        "X-Hop: 1",
        "Content-Length: 3",
        "Accept: */*",
    )
    assert (asked.host, asked.port, asked.body_bytes) == ("api.example.com", 8080, 3)
    assert asked.head == (
        b"POST /a?b=c HTTP/1.1\r\nHost: api.example.com:8080\r\nContent-Length: 3\r\nAccept: */*\r\n"
        b"Connection: close\r\n\r\n"
    )


@pytest.mark.parametrize(
    "lines",
    [
        ("GET / HTTP/1.1", "Host: api.example.com"),
        ("GET https://api.example.com/ HTTP/1.1",),
        ("GET ftp://api.example.com/ HTTP/1.1",),
        ("GET http://user@api.example.com/ HTTP/1.1",),
        ("GET http:///x HTTP/1.1",),
        ("GET http://[::1]/ HTTP/1.1",),
        ("GET http://api.example.com:0/ HTTP/1.1",),
        ("GET http://api.example.com:99999/ HTTP/1.1",),
        ("GET http://api.example.com HTTP/2",),
        ("GET  http://api.example.com HTTP/1.1",),
        ("G\x00T http://api.example.com HTTP/1.1",),
        ("GET http://api.example.com/ HTTP/1.1", "A: b\nX: y"),
        ("GET http://api.example.com/ HTTP/1.1", " folded: x"),
        ("GET http://api.example.com/ HTTP/1.1", "no colon"),
        ("GET http://api.example.com/ HTTP/1.1", "name : x"),
        ("POST http://api.example.com/ HTTP/1.1", "Content-Length: 3", "Content-Length: 4"),
        ("POST http://api.example.com/ HTTP/1.1", "Content-Length: +3"),
        ("CONNECT api.example.com HTTP/1.1",),
        ("CONNECT api.example.com:https HTTP/1.1",),
        ("CONNECT http://api.example.com:443 HTTP/1.1",),
        ("CONNECT [::1]:443 HTTP/1.1",),
        ("CONNECT api.example.com:443:443 HTTP/1.1",),
        ("CONNECT a..b:443 HTTP/1.1",),
        ("CONNECT xn--\xfc.example:443 HTTP/1.1",),
    ],
)
def test_what_is_not_plainly_a_proxy_request_is_refused(lines: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as refused:
        read(*lines)
    assert refused.value.code is Code.BAD_REQUEST and refused.value.fix


def test_a_body_without_a_length_is_refused_with_what_to_do() -> None:
    with pytest.raises(Refused, match="without a length") as refused:
        read("POST http://api.example.com/ HTTP/1.1", "Content-Length: 3", "Transfer-Encoding: chunked")
    assert b"411 Length Required" in refused.value.response()


@pytest.mark.parametrize("name", ["content-length", "Transfer-Encoding", "HOST", "te", "trailer", "upgrade"])
def test_connection_takes_no_header_away_that_says_where_a_body_ends(name: str) -> None:
    with pytest.raises(Refused, match=f"Connection names {name.lower()}") as refused:
        read("POST http://api.example.com/ HTTP/1.1", f"Connection: close, {name}", "Content-Length: 3")
    assert refused.value.code is Code.BAD_REQUEST and refused.value.fix


def test_the_length_sent_on_is_the_one_that_is_carried() -> None:
    asked = read("POST http://api.example.com/ HTTP/1.1", "content-length: 003", "Content-Length: 003")
    assert asked.body_bytes == 3
    assert asked.head.lower().count(b"content-length") == 1 and b"\r\nContent-Length: 3\r\n" in asked.head


@pytest.mark.parametrize(
    "host", ["127.1", "0x7f.0.0.1", "2130706433", "0177.0.0.1", "127.0.0.01", "1.2.3.4.5", "0x7f000001"]
)
def test_a_number_that_some_resolver_takes_for_an_address_is_no_host(host: str) -> None:
    assert canonical(host) is None


@given(st.binary(max_size=300))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    try:
        parse(data + b"\r\n\r\n")
    except Refused as refused:
        assert refused.response().startswith(b"HTTP/1.1 4")


def hello(server_name: str | None) -> bytes:
    """A real one, of this machine's TLS library."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = server_name is not None
    handshake = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


def read_hello(data: bytes) -> client_hello.ClientHello | None:
    return client_hello.HelloReader().feed(data)


def with_extension(data: bytes, kind: int, body: bytes) -> bytes:
    """``data`` with one more extension at its end, all lengths put right."""
    added = kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body
    message = bytearray(data[5:])
    at = 4 + 2 + 32
    at += 1 + message[at]
    at += 2 + int.from_bytes(message[at : at + 2], "big")
    at += 1 + message[at]
    size = int.from_bytes(message[at : at + 2], "big") + len(added)
    message[at : at + 2] = size.to_bytes(2, "big")
    message += added
    message[1:4] = (len(message) - 4).to_bytes(3, "big")
    return data[:3] + len(message).to_bytes(2, "big") + bytes(message)


def test_the_server_name_of_a_real_handshake_is_read() -> None:
    whole = hello("Api.Example.com")
    assert read_hello(whole) == client_hello.ClientHello(server_name="api.example.com", is_encrypted=False)
    assert read_hello(hello(None)) == client_hello.ClientHello(server_name=None, is_encrypted=False)


def records(whole: bytes, count: int) -> bytes:
    """``whole`` in ``count`` records, all but the last of one byte."""
    message = whole[5:]
    parts = [*(message[at : at + 1] for at in range(count - 1)), message[count - 1 :]]
    return b"".join(whole[:3] + len(part).to_bytes(2, "big") + part for part in parts)


def test_a_handshake_in_several_records_is_the_same_and_half_of_one_is_waited_for() -> None:
    whole = hello("api.example.com")
    cut = records(whole, client_hello.RECORDS_MOST)
    found = read_hello(cut)
    assert found is not None and found.server_name == "api.example.com"
    assert all(read_hello(whole[:size]) is None for size in range(len(whole)))
    reader = client_hello.HelloReader()
    assert [reader.feed(cut[at : at + 1]) for at in range(len(cut))] == [None] * (len(cut) - 1) + [found]
    assert read_hello(cut + b"early data") == found


def test_a_handshake_in_very_many_records_or_a_very_long_one_is_refused_early() -> None:
    cut = records(hello("api.example.com"), client_hello.RECORDS_MOST + 1)
    reader = client_hello.HelloReader()
    with pytest.raises(client_hello.NotTls, match="more than 16 records"):
        for at in range(6 * client_hello.RECORDS_MOST + 1):
            reader.feed(cut[at : at + 1])
    with pytest.raises(client_hello.NotTls, match="above 16384 bytes"):
        read_hello(b"\x16\x03\x01\x00\x04\x01" + (16 * 1024 - 3).to_bytes(3, "big"))


@pytest.mark.parametrize("kind", [0xFE0D, 0xFFCE])
def test_a_hidden_name_is_noticed(kind: int) -> None:
    found = read_hello(with_extension(hello("api.example.com"), kind, b"\x00" * 8))
    assert found is not None and found.is_encrypted


def test_two_server_names_are_no_server_name() -> None:
    name = b"evil.example"
    second = (len(name) + 3).to_bytes(2, "big") + b"\x00" + len(name).to_bytes(2, "big") + name
    with pytest.raises(client_hello.NotTls, match="twice"):
        read_hello(with_extension(hello("api.example.com"), 0, second))


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-x\r\n", b"GET / HTTP/1.1\r\n", b"\x16\x02\x00", b"\x16\x03\x01\x00\x00", b"\x17\x03\x03"]
)
def test_what_is_not_a_handshake_is_told_at_once(data: bytes) -> None:
    with pytest.raises(client_hello.NotTls):
        read_hello(data)


@given(st.binary(max_size=400))
def test_whatever_comes_as_a_handshake_is_bounded(data: bytes) -> None:
    try:
        read_hello(b"\x16\x03\x01" + len(data).to_bytes(2, "big") + data)
    except client_hello.NotTls:
        return


def test_a_declared_gpu_is_called_the_same_everywhere() -> None:
    assert FAKE_GPU == PROTOCOL_FAKE_GPU
