"""What a model deployment is asked to be: desired state, as ``PUT /v1/model-deployments/{name}`` takes it."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from controlplane.errors import field_problem
from controlplane.inference.values import ServerKind
from controlplane.workflows.problem_values import Problem, child, did_you_mean
from controlplane.workflows.spec import SecretName
from dataplane.model_wire import MODEL_ARGUMENTS, SOURCE_PATTERN, argument_problem

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
ALIAS_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
"""Wider than a name: what callers that were written for other services already say."""

USUAL_MEMORY_BYTES = {"sglang": 4 * 1024**3, "llamacpp": 1024**3}
"""Of a small model on a CPU; a larger one says so."""

ON_NODES = ("source", "args", "labels", "gpus", "gpu_memory_bytes", "memory_bytes", "replicas", "cpu_milli")
"""Fields of a deployment that nodes of ours serve."""

Modality = Literal["text", "image", "audio", "embeddings"]
ModelName = Annotated[str, StringConstraints(pattern=ALIAS_PATTERN)]
ArgumentName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
Argument = Annotated[str, StringConstraints(max_length=128)] | bool | int | float
Label = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]


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
    """A model under a name, and what serves it: an engine on ``replicas`` nodes, or another service."""

    engine: ServerKind
    source: Annotated[str, StringConstraints(pattern=SOURCE_PATTERN)] | None = None
    """The model: a name in the models folder of the nodes. Nothing is ever downloaded."""
    external: ExternalSpec | None = None
    replicas: int = Field(default=1, ge=0, le=64)
    gpus: int = Field(default=0, ge=0, le=16)
    """Devices of each replica, its own; without any it runs on the CPU."""
    gpu_memory_bytes: int = Field(default=0, ge=0, le=2**50)
    """What each of its devices must have."""
    cpu_milli: int = Field(default=500, ge=0, le=1_000_000)
    """What each replica takes of its node's CPU; likewise the next."""
    memory_bytes: int | None = Field(default=None, ge=0, le=2**50)
    args: dict[ArgumentName, Argument] = Field(default={}, max_length=32)
    """Flags of the server without their dashes; ``true`` for a bare one."""
    labels: dict[Label, Label] = Field(default={}, max_length=16)
    """Of the nodes it may run on."""
    aliases: list[ModelName] = Field(default=[], max_length=32)
    """Other names it answers to."""
    modalities: list[Modality] = Field(default=["text"], min_length=1, max_length=4)
    context_tokens: int | None = Field(default=None, ge=1, le=100_000_000)

    @property
    def usual_memory_bytes(self) -> int:
        """What a replica is taken to need where the deployment does not say."""
        return USUAL_MEMORY_BYTES.get(self.engine, 0)

    def shown(self) -> dict[str, Any]:
        """With the defaults that apply to it; the same again when it is sent back."""
        return self.model_dump(mode="json", exclude_none=True, exclude=set(ON_NODES) if self.external else None)

    def problems(self) -> list[Problem]:
        """What does not fit together in it."""
        found = []
        if self.engine == "external":
            if self.external is None:
                fix = '{"url": "https://…/v1", "model": "…", "secret": "…"}'
                found.append(field_problem("/external", "an external deployment says where the service is", fix))
            for name in [name for name in ON_NODES if name in self.model_fields_set]:
                found.append(field_problem(f"/{name}", "what is external runs on no node of ours", "remove it"))
            return found
        if self.external is not None:
            fix = 'remove it, or set "engine": "external"'
            found.append(field_problem("/external", f"{self.engine} runs on our own nodes", fix))
        if self.source is None:
            fix = '"source": "NAME", a file or folder in the models folder of the nodes'
            found.append(field_problem("/source", "which model is to be served?", fix))
        for name, value in self.args.items():
            if why := argument_problem(self.engine, name, value):
                known = MODEL_ARGUMENTS[self.engine]
                fix = did_you_mean(name, known) or f"use one of: {', '.join(sorted(known))}"
                found.append(field_problem(child("/args", name), why, fix))
        return found
