"""Settings of the control plane: ``STOCKADE_*`` variables, read here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from controlplane import private_hosts
from controlplane.authorization.opa.address import OpaAddress, read_token

MIB = 1024 * 1024


class SettingsRefused(Exception):
    """A variable is wrong; the message is one line for each: variable, value, what it should be."""


def _hosts(value: object) -> object:
    return private_hosts.parse(value) if isinstance(value, str) else value


class Settings(BaseSettings):
    """Each field can be set by the variable of its name: ``STOCKADE_STATE_DIR``, ``STOCKADE_PORT``, …"""

    model_config = SettingsConfigDict(env_prefix="STOCKADE_", frozen=True, extra="ignore")

    state_dir: Path = Path("~/.stockade/server")
    """Holds the database, artifacts, output logs and key files; made with mode 0700."""
    host: str = "127.0.0.1"
    port: int = Field(default=7373, ge=0, le=65535)
    tls_certificate_file: Path | None = None
    """With ``tls_key_file``: the port speaks HTTPS. ``python -m controlplane.certificates`` makes both."""
    tls_key_file: Path | None = None
    tenant: str = Field(default="default", pattern=r"^[a-z][a-z0-9-]{0,62}$")

    lease_seconds: float = Field(default=15.0, gt=0)
    """How long an attempt is a node's own after the node's last heartbeat."""
    heartbeat_seconds: float = Field(default=3.0, gt=0)
    hold_seconds: float = Field(default=900.0, gt=0)
    """How long a cut-off node keeps frozen attempts."""
    node_bytes_per_second: float = Field(default=125_000_000.0, gt=0)
    """What placement assumes of the way to a node until it has measured it."""
    join_token_seconds: float = Field(default=86_400.0, gt=0)

    policy_dir: Path | None = None
    """Rules and data of your own, beside the ones in the package."""
    policy_deadline_seconds: float = Field(default=0.2, gt=0)
    policy_engine: Literal["embedded", "opa"] = "embedded"
    """What evaluates the rules: worker processes of our own, or the OPA server at ``opa_url``."""
    opa_url: str = ""
    """``unix:///path``, ``https://host:port``, or ``http://`` on loopback."""
    opa_token_file: Path | None = None
    """The secret shared with that OPA: it is asked with it, and fetches the bundle with it."""

    private_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_hosts)] = ()
    """``host:port,host:port`` of private addresses that HTTP tools may reach (policy still decides); default none."""

    secrets_key_file: Path | None = None
    """32 bytes that seal secrets; default: ``secrets.key`` in the state directory, made at first start."""
    admin_key_file: Path | None = None
    """Where the first key, a person's with every scope, is written; default: ``admin.key`` in the state directory."""

    max_body_bytes: int = Field(default=2 * MIB, gt=0)
    max_artifact_bytes: int = Field(default=1024 * MIB, gt=0)
    max_node_body_bytes: int = Field(default=64 * MIB, gt=0)
    """One message of a node; a report carries a result of up to 16 MiB."""
    max_model_body_bytes: int = Field(default=16 * MIB, gt=0)
    """One request to a model; images are in it."""
    node_ca_file: Path | None = None
    """Who signed the certificates of nodes that listen; default: whom the system trusts."""
    node_certificate_file: Path | None = None
    """What such nodes are shown, with its key in the same file; default none."""
    control_plane_url: str = ""
    """For a gateway process: where its control plane is; ``https``, or ``http`` on loopback."""
    gateway_token_file: Path | None = None
    """What a gateway process shows; default: ``gateway.token`` in the state directory, made at first start."""
    model_seconds: float = Field(default=600.0, gt=0)
    """How long a model may take for an answer, or for the first token of a stream."""
    max_output_bytes: int = Field(default=16 * MIB, gt=0)
    """Stored stdout, and stderr, of one attempt."""
    sse_heartbeat_seconds: float = Field(default=15.0, gt=0)
    idempotency_seconds: float = Field(default=86_400.0, gt=0)
    """How long the answer to an ``Idempotency-Key`` is kept."""

    @model_validator(mode="after")
    def _names_an_opa(self) -> Self:
        if self.policy_engine == "opa":
            OpaAddress.parse(self.opa_url)
            if self.opa_token_file is None:
                raise ValueError("the policy engine opa needs STOCKADE_OPA_TOKEN_FILE: openssl rand -hex 32 > FILE")
        return self

    @model_validator(mode="after")
    def _has_both_halves_of_tls(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS needs both STOCKADE_TLS_CERTIFICATE_FILE and STOCKADE_TLS_KEY_FILE; one is missing")
        for path in (self.tls_certificate_file, self.tls_key_file):
            if path is not None and not path.is_file():
                raise ValueError(f"there is no file {path}; make it with python -m controlplane.certificates")
        return self

    @property
    def opa_address(self) -> OpaAddress:
        """Raises: ValueError, only if no OPA decides."""
        return OpaAddress.parse(self.opa_url)

    @property
    def opa_token(self) -> str:
        """Read from its file. Raises: OSError, ValueError."""
        if self.opa_token_file is None:
            raise ValueError("there is no STOCKADE_OPA_TOKEN_FILE")
        return read_token(self.opa_token_file)

    @property
    def root(self) -> Path:
        """The state directory, with ``~`` resolved."""
        return self.state_dir.expanduser()

    @property
    def database(self) -> Path:
        return self.root / "stockade.db"

    @property
    def secrets_key(self) -> Path:
        return (self.secrets_key_file or self.root / "secrets.key").expanduser()

    @property
    def admin_key(self) -> Path:
        return (self.admin_key_file or self.root / "admin.key").expanduser()

    @property
    def gateway_token(self) -> Path:
        return (self.gateway_token_file or self.root / "gateway.token").expanduser()

    @property
    def url(self) -> str:
        """Where it listens, for people."""
        scheme = "http" if self.tls_certificate_file is None else "https"
        return f"{scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def from_environment() -> Settings:
    """The settings of this process. Raises ``SettingsRefused``."""
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsRefused("\n".join(_said(one) for one in error.errors())) from None


def _said(refused: ErrorDetails) -> str:
    message = refused["msg"].removeprefix("Value error, ")
    if not refused["loc"]:  # of several variables together
        return message
    return f"STOCKADE_{str(refused['loc'][0]).upper()}={str(refused['input'])!r}: {message}"
