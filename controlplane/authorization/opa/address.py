"""Where an OPA server listens, and the secret it shares with us; checked before anything is connected."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SHORTEST_TOKEN = 32
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True, slots=True)
class OpaAddress:
    """Where OPA listens. ``socket`` is "" for TCP."""

    host: str
    port: int
    is_https: bool
    socket: str = ""

    @classmethod
    def parse(cls, url: str) -> OpaAddress:
        """From ``unix:///path``, ``https://host[:port]``, or ``http://`` on loopback.

        Raises: ValueError with what is wrong and what to write instead."""
        parts = urlsplit(url)
        if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
            return cls(host="opa", port=80, is_https=False, socket=parts.path)
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise ValueError(
                f"{url!r} is no address of an OPA: unix:///path, https://host:port or http://127.0.0.1:port"
            )
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ValueError(f"{url!r} would send the token in the clear: use https://, a unix socket or loopback")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(host=host, port=parts.port or _DEFAULT_PORTS[parts.scheme], is_https=parts.scheme == "https")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, whoever answers to it
        return False


def read_token(path: Path) -> str:
    """The shared token. Blocking. Raises: OSError; ValueError if it is too short or cannot be a header."""
    token = path.expanduser().read_text("utf-8").strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{path} must hold {SHORTEST_TOKEN} or more letters and digits: openssl rand -hex 32")
    return token
