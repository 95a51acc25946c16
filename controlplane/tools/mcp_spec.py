"""What a registered MCP server is, and what of it a review accepts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator

from controlplane.tools.spec import ArgumentName, Effect, HeaderName, HeaderValue, SecretBinding, Sent, private_headers
from controlplane.workflows.quantities import parse_size

SERVER_PATTERN = r"^[a-z][a-z0-9_-]{0,62}$"
_MEMORY_LEAST, _MEMORY_MOST = 16 * 1024**2, 64 * 1024**3
Word = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
MountName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
RootAddress = Annotated[str, StringConstraints(pattern=r"^data://[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class ProcessSpec(Sent):
    """A stdio server: started by a node, in a sandbox of its own without network. It gets no secrets."""

    command: list[Word] = Field(min_length=1, max_length=64)
    env: dict[Variable, Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]] = Field(
        default={}, max_length=64
    )
    mounts: dict[MountName, RootAddress] = Field(default={}, max_length=8)
    """Name below ``/inputs`` -> a data root that the node exports, there as a folder, read-only."""
    tier: Literal["jail", "container"] = "jail"
    image: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,254}$")] = "python"
    memory: Annotated[str, StringConstraints(max_length=32)] = "256Mi"

    @field_validator("memory")
    @classmethod
    def _size(cls, value: str) -> str:
        if not _MEMORY_LEAST <= parse_size(value) <= _MEMORY_MOST:
            raise ValueError("memory is from 16Mi to 64Gi")
        return value


class EndpointSpec(Sent):
    """A Streamable HTTP server."""

    url: Annotated[str, StringConstraints(min_length=8, max_length=2048, pattern=r"^[\x21-\x7e]+$")]
    headers: dict[HeaderName, HeaderValue] = Field(default={}, max_length=32)

    @model_validator(mode="after")
    def _safe(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment or "\\" in self.url:
            raise ValueError("url must be http://host/… or https://host/…, without a fragment")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must not hold credentials; use secrets")
        if parts.port == 0:  # raises ValueError itself for a port that is no number or out of range
            raise ValueError("url has port 0")
        private_headers(self.headers)
        return self


class McpServerSpec(Sent):
    """What ``PUT /v1/mcp-servers/{name}`` takes: exactly one of ``process`` and ``endpoint``."""

    kind: Literal["mcp"] = "mcp"
    process: ProcessSpec | None = None
    endpoint: EndpointSpec | None = None
    timeout: float = Field(default=30.0, gt=0, le=600)
    """Seconds for one call."""
    secrets: list[SecretBinding] = Field(default=[], max_length=8)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.process is None) == (self.endpoint is None):
            raise ValueError("give one of process (a stdio server) and endpoint (a Streamable HTTP server)")
        if self.process is not None and self.secrets:
            raise ValueError("a stdio server gets no secrets; use a Streamable HTTP server, whose headers get them")
        return self


class Definition(Sent):
    """A tool as its server describes it: hostile text until somebody has read it."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    title: Annotated[str, StringConstraints(max_length=8192)] | None = None
    description: Annotated[str, StringConstraints(max_length=8192)] | None = None
    inputSchema: dict[str, Any]
    outputSchema: dict[str, Any] | None = None
    annotations: dict[str, Any] | None = None


class LeftOut(Sent):
    """A tool that the node did not take, and why."""

    name: Annotated[str, StringConstraints(max_length=128)]
    why: Annotated[str, StringConstraints(max_length=500)]


class Listing(Sent):
    """What a node found a server to offer."""

    server: str
    server_id: str
    tools: list[Definition] = Field(max_length=256)
    left_out: list[LeftOut] = Field(default=[], max_length=64)


class Acceptance(Sent):
    """One tool that a reviewer accepts, by the digest of the definition that was read."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    digest: Digest
    effect: Effect = "immediate"
    critical_args: list[ArgumentName] | None = Field(default=None, max_length=64)


class Review(Sent):
    """What ``POST /v1/mcp-servers/{name}:review`` takes."""

    tools: list[Acceptance] = Field(min_length=1, max_length=256)


class McpToolSpec(Sent):
    """A reviewed tool, as it is stored."""

    kind: Literal["mcp"] = "mcp"
    description: str
    effect: Effect
    input: dict[str, Any]
    output: dict[str, Any] | None = None
    critical_args: list[str] | None = None
    server: str
    server_digest: str
    definition: dict[str, Any]
    definition_digest: str
