"""What a model deployment is asked to be: desired state, as ``PUT /v1/model-deployments/{name}`` takes it."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from controlplane.inference.values import ServerKind

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
ALIAS_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
"""Wider than a name: what callers that were written for other services already say."""

Modality = Literal["text", "image", "audio", "embeddings"]
ModelName = Annotated[str, StringConstraints(pattern=ALIAS_PATTERN)]
SecretName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]*$", max_length=64)]


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExternalSpec(_Sent):
    """An OpenAI-compatible service elsewhere. Its key stays in the secret store."""

    url: Annotated[str, StringConstraints(min_length=8, max_length=2048, pattern=r"^[\x21-\x7e]+$")]
    """Its base, such as ``https://models.example/v1``: what stands before ``/chat/completions``."""
    model: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[\x21-\x7e]+$")]
    """What the service itself calls the model."""
    secret: SecretName | None = None
    """The secret with its key, sent as a bearer."""
    slots: int = Field(default=64, ge=1, le=100_000)
    """Calls at one time."""

    @model_validator(mode="after")
    def _plain_address(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must be https://host/…")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must not hold credentials; use secret")
        if parts.query or parts.fragment or "?" in self.url or "#" in self.url or "\\" in self.url:
            raise ValueError("url must end with its path")
        # Raises ValueError itself for a port that is no number or out of range.
        if parts.port == 0:
            raise ValueError("url has port 0")
        return self

    @property
    def host_and_port(self) -> str:
        """As ``STOCKADE_PRIVATE_HOSTS`` names it."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"

    def refusal(self, private_hosts: frozenset[str]) -> str | None:
        """Why the control plane may not call this address; ``None`` if it may, as far as the address itself says."""
        if self.host_and_port in private_hosts:
            return None
        parts = urlsplit(self.url)
        if parts.scheme != "https":
            return "the address is not https, so prompts and key would travel in clear text"
        host = parts.hostname or ""
        try:
            is_internal = not ipaddress.ip_address(host).is_global
        except ValueError:
            is_internal = host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
        return "the address is private" if is_internal else None


class DeploymentSpec(_Sent):
    """A model under a name, and what serves it."""

    engine: Literal["external"]
    external: ExternalSpec
    aliases: list[ModelName] = Field(default=[], max_length=32)
    """Other names it answers to."""
    modalities: list[Modality] = Field(default=["text"], min_length=1, max_length=4)
    context_tokens: int | None = Field(default=None, ge=1, le=100_000_000)

    @property
    def kind(self) -> ServerKind:
        return self.engine
