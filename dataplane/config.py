"""What a node is told at its start, and the files it keeps in its state directory.

<state_dir>/identity    the node's stable name on the wire, made once
<state_dir>/node.token  the join token, kept (0600) so that a restart needs none
<state_dir>/node.pid    the running daemon                <state_dir>/heard     touched at each acknowledged heartbeat
<state_dir>/artifacts/  the artifact cache        <state_dir>/spool/  output that waits for the control plane
<state_dir>/models/     model servers: what was started, their logs (``dataplane.models.process``)
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

GIB = 1024**3


class ConfigError(Exception):
    """The node cannot start as configured; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Listen:
    """Where the node takes connections itself. With ``client_ca`` who connects must show a certificate too."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    @classmethod
    def parse(cls, text: str, certificate: Path | None, key: Path | None, client_ca: Path | None) -> Listen:
        """``IP:PORT``. Raises ``ConfigError`` for another form, and for what would be open to read on a network."""
        host, _, port = text.rpartition(":")
        try:
            address = ipaddress.ip_address(host.strip("[]"))
            good = 0 < int(port) < 65536 and not address.is_unspecified
        except ValueError:
            good = False
        if not good:
            raise ConfigError(f"--listen {text!r} is not IP:PORT of one interface, such as 10.0.0.7:7500")
        if certificate is None and not address.is_loopback:
            raise ConfigError(f"refusing to listen on {host} without --tls-certificate: prompts would travel open")
        return cls(host=str(address), port=int(port), certificate=certificate, key=key, client_ca=client_ca)

    @property
    def address(self) -> str:
        """For whoever connects."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.certificate is None else 'https'}://{host}:{self.port}"

    def ssl_context(self) -> ssl.SSLContext | None:
        """Blocking. Raises: OSError, ssl.SSLError."""
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """One node. ``None`` means "find out". Bytes and milli-CPUs are what is offered, not what is measured."""

    url: str
    state_dir: Path
    cache_dir: Path | None = None
    """Prepared images, which nodes of one user can share; default: ``images`` in the state directory."""
    join_token: str | None = None
    join_token_file: Path | None = None
    name: str = field(default_factory=socket.gethostname)
    data: Mapping[str, Path] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    slots: int | None = None
    cpu_milli: int | None = None
    memory_bytes: int | None = None
    fake_gpus: str | None = None
    """``4x80Gi`` declares GPUs that do not exist, for tests; ``None`` reports those that the driver shows."""
    pool_size: int = 2
    cache_bytes: int = 4 * GIB
    ca_file: Path | None = None
    drain_seconds: float = 30.0
    components: Path | None = None
    """What ``make components`` filled: engines of model servers are looked for in its ``bin``, then on PATH."""
    models: Path | None = None
    """The folder of models that deployments name; default: ``models`` in ``components``."""
    lifeline: int = 0
    """A process with which model servers end, however that ends; 0: they outlive even this daemon's crash."""
    container_runtime: Literal["runc", "runsc"] | None = None
    """``None``: ``runsc`` where the Docker Engine has it."""

    listen: Listen | None = None
    """``None``: the node is reached by the tunnel that it dials."""

    def checked_url(self) -> str:
        """The base address without a trailing slash. Raises ``ConfigError`` where a bearer token would travel open."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ConfigError(f"{self.url!r} is not a control plane address; use https://HOST[:PORT]")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ConfigError(
                f"refusing to send the node's token in clear text to {parts.hostname}: use https:// "
                "(with --ca-file for a private authority); http:// is for loopback only"
            )
        return self.url.rstrip("/")

    def read_join_token(self) -> str:
        """The join token from value, file or an earlier start. Raises ``ConfigError`` if there is none."""
        if self.join_token:
            return self.join_token.strip()
        for path in (self.join_token_file, self.state_dir / "node.token"):
            if path is not None and path.is_file():
                token = path.read_text().strip()
                if token:
                    return token
        raise ConfigError("no join token: make one with `stockade node join-token` and pass it with --join-token-file")


def is_loopback(host: str) -> bool:
    """Whether the name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def keep_secret(path: Path, value: str) -> None:
    """Write ``value`` so that only this user can read it, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(value + "\n")
    temporary.replace(path)


def stable_identity(config: NodeConfig) -> tuple[str, str]:
    """``NAME-RANDOM`` and the secret that proves it, made at the first start in this state directory and kept."""
    config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = _kept(config.state_dir / "identity", lambda: f"{config.name}-{secrets.token_hex(6)}")
    return name, _kept(config.state_dir / "identity.proof", lambda: secrets.token_hex(32))


def _kept(path: Path, make: Callable[[], str]) -> str:
    if path.is_file() and (known := path.read_text().strip()):
        return known
    fresh = make()
    keep_secret(path, fresh)
    return fresh
