"""A guest's request to its proxy, read strictly: ``CONNECT host:port`` or one plain request with a whole address.

What two readers could read differently is refused, so that what was judged is what the other side gets.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from dataplane.forwarder.refusals import Code, Refused

HEAD_BYTES_MOST = 16 * 1024
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_TARGET = re.compile(r"[\x21-\x7e]+")
_PORT = re.compile(r"[0-9]{1,5}")
_BETWEEN_TWO = frozenset(
    {"connection", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "upgrade"}
)
_FRAMING = frozenset({"content-length", "transfer-encoding", "host", "te", "trailer", "upgrade"})
_USE = "use it as an HTTP proxy: HTTP_PROXY and HTTPS_PROXY are set"


@dataclass(frozen=True, kw_only=True)
class ProxyRequest:
    """Where to. Of a plain request also ``head``, as it is to be sent on, and how many bytes of body follow it."""

    method: str
    host: str
    port: int
    head: bytes = b""
    body_bytes: int = 0

    @property
    def is_tunnel(self) -> bool:
        return self.method == "CONNECT"


def parse(head: bytes) -> ProxyRequest:
    """``head`` ends with an empty line. Raises ``Refused``."""
    lines = head.removesuffix(b"\r\n\r\n").decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):
        raise _bad("the request line is not `METHOD TARGET HTTP/1.1`")
    method, target, _version = words
    if not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        raise _bad("the method or the target has characters that HTTP does not allow")
    headers = [_header(line) for line in lines[1:]]
    if method == "CONNECT":
        host, port = _authority(target, None)
        return ProxyRequest(method=method, host=host, port=port)
    return _plain(method, target, headers)


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
        raise _bad("a header is malformed")
    return name, value.strip(" \t")


def _plain(method: str, target: str, headers: list[tuple[str, str]]) -> ProxyRequest:
    try:
        parts = urlsplit(target)
    except ValueError:
        raise _bad("the target is no address") from None
    if parts.scheme.lower() != "http" or not parts.netloc:
        raise _bad("the target is not a whole http:// address; for https the client asks with CONNECT")
    host, port = _authority(parts.netloc, 80)
    body_bytes = _body_bytes(headers)
    named = {
        word.strip().lower() for name, value in headers if name.lower() == "connection" for word in value.split(",")
    }
    if framing := sorted(named & _FRAMING):
        fix = "send a Connection header that names no such header, or use https"
        raise Refused(Code.BAD_REQUEST, f"Connection names {', '.join(framing)}: the body's end would be in doubt", fix)
    left_out = _BETWEEN_TWO | named | {"host", "content-length"}
    kept = [(name, value) for name, value in headers if name.lower() not in left_out]
    if any(name.lower() == "content-length" for name, _ in headers):
        kept.insert(0, ("Content-Length", str(body_bytes)))  # what is carried, not what was written
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    at = host if port == 80 else f"{host}:{port}"
    lines = [f"{method} {path} HTTP/1.1", f"Host: {at}", *(f"{name}: {value}" for name, value in kept)]
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
    return ProxyRequest(method=method, host=host, port=port, head=head, body_bytes=body_bytes)


def _body_bytes(headers: list[tuple[str, str]]) -> int:
    lengths = {value for name, value in headers if name.lower() == "content-length"}
    if any(name.lower() == "transfer-encoding" for name, _ in headers):
        raise Refused(
            Code.LENGTH_REQUIRED,
            "a body without a length is not passed on",
            "send Content-Length instead of Transfer-Encoding, or use https",
        )
    if not lengths:
        return 0
    length = lengths.pop()
    if lengths or not re.fullmatch(r"[0-9]{1,18}", length):
        raise _bad("Content-Length is not one number")
    return int(length)


def _authority(text: str, standard_port: int | None) -> tuple[str, int]:
    host, colon, digits = text.rpartition(":")
    if not colon and standard_port is not None:
        host, digits = text, str(standard_port)
    port = int(digits) if _PORT.fullmatch(digits) else 0
    name = canonical(host)
    if name is None or not 0 < port < 65536:
        raise _bad("the target names no host and port; write a name or an IPv4 address, and a port from 1 to 65535")
    return name, port


def canonical(host: str) -> str | None:
    """A name in lower case without its last dot, or a plain IPv4 address; ``None`` for anything else.

    Numbers that some resolvers take for an address (``127.1``, ``0x7f000001``, ``2130706433``) are neither.
    """
    name = host.lower().removesuffix(".")
    if not _NAME.fullmatch(name):
        return None
    last = name.rpartition(".")[2]
    if last[0].isdigit() and (last.isdigit() or last.startswith("0x")):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            return None
    return name


def _bad(message: str) -> Refused:
    return Refused(Code.BAD_REQUEST, message, _USE)
