"""What the parts of inference say to each other: replicas that serve, calls, answers. Values only.

deployments ──Replica──▶ gateway ◀──ModelCall── verbs `llm` and `agent`, the OpenAI routes
                            └──ModelAnswer──▶
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from controlplane.authorization.values import Decision

ServerKind = Literal["sglang", "llamacpp", "external"]


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One server that answers for a deployment.

    ``node`` is the id of the node it runs on, reached through a dialer; an ``external`` one has ``url`` instead, and
    ``secret`` names its key. ``served_name`` is what the server itself calls the model.
    """

    id: str
    tenant: str
    deployment: str
    kind: ServerKind
    served_name: str
    ready: bool
    node: str | None = None
    url: str | None = None
    secret: str | None = None
    slots: int = 8
    context_tokens: int | None = None
    modalities: frozenset[str] = frozenset({"text"})


class Replicas(Protocol):
    """The live view of what serves which model; from memory."""

    def of(self, tenant: str, deployment: str) -> list[Replica]:
        """Every replica of a deployment, also those that are not ready."""

    def deployments(self, tenant: str) -> list[str]:
        """Names of the tenant's deployments, sorted."""

    def resolve(self, tenant: str, name: str) -> str | None:
        """The deployment that has this name or alias."""


@dataclass(frozen=True, kw_only=True)
class ModelCall:
    """One call. ``body`` is that of OpenAI's chat completions without ``model`` and ``stream``.

    ``models`` are names or aliases, the first preferred, the others for when it cannot serve. ``key`` is the same on
    every attempt. ``labels`` are the data-flow labels of the prompt. ``run`` and ``path`` are of the step that calls,
    and ``asker`` what its workflow adds to policy's question.
    """

    tenant: str
    principal: str
    models: tuple[str, ...]
    body: Mapping[str, Any]
    key: str
    labels: Mapping[str, Any] = field(default_factory=dict)
    run: str | None = None
    path: str = ""
    asker: Mapping[str, Any] = field(default_factory=dict)
    deadline_seconds: float = 300.0


@dataclass(frozen=True, kw_only=True)
class ModelAnswer:
    """A completed answer: OpenAI's assistant ``message`` and ``usage``. ``model`` is the deployment that gave it."""

    message: Mapping[str, Any]
    finish_reason: str
    model: str
    replica: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class ModelFailed(Exception):
    """No answer. ``type`` is an error type of a step: ``rate_limited``, ``timeout``, ``schema`` (the request is not
    one that the model takes), ``policy_denied``, ``not_found``, or ``model``; ``retryable`` says whether the same call
    may be answered later."""

    def __init__(self, type: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.type = type
        self.message = message
        self.retryable = retryable


class Models(Protocol):
    """Calls models for the control plane itself: authorizing and performing are two steps, with a commit between."""

    async def decide(self, call: ModelCall) -> Decision:
        """What ``runtime.model`` says. Raises: PolicyUnavailable; ModelFailed for a name nobody has."""

    async def complete(self, call: ModelCall) -> ModelAnswer:
        """Perform an allowed call, on a ready replica, failing over before the first token. Raises: ModelFailed."""
