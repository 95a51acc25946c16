"""What a gateway process and the control plane say to each other: JSON over HTTP, the gateway always calls.

    POST /internal/gateway/v1/admit    AdmitRequest  -> Admitted, or a refusal
    POST /internal/gateway/v1/models   ModelsRequest -> [Listed]
    POST /internal/gateway/v1/key      KeyRequest    -> KeyAnswer
    POST /internal/gateway/v1/usage    UsageBatch    -> 204, also for one that was taken before
    POST /internal/gateway/v1/nodes/{node}/models/{replica}/v1/…   bytes -> bytes, through the relay; or a NoRelay

Prompts are not part of any question here: the last one carries them, and only to a node that is reached by its tunnel.
The bearer is the gateway's own token, which the control plane makes at its start.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from controlplane.inference.gateway.authority import Admission
from controlplane.inference.gateway.metering import Usage
from controlplane.inference.gateway.refusals import Code, GatewayRefused
from controlplane.inference.gateway.requests import ModelRequest, Operation
from controlplane.inference.values import Replica

PREFIX = "/internal/gateway/v1"
TENANT = "X-Stockade-Tenant"
IDLE = "X-Stockade-Idle-Seconds"
NOT_RELAYED = "X-Stockade-Not-Relayed"
"""On a ``NoRelay``, and only there: no header of a model server passes the relay under this name."""
BATCH_MOST = 1000


class _Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Keyword-only, defaults left out, unknown fields ignored."""


class AdmitRequest(_Message):
    """All of a request that decides who may answer it; not what it says."""

    key: str | None
    operation: Operation
    models: list[str]
    tools: list[str] = []
    max_tokens: int | None = None

    @classmethod
    def of(cls, key: str | None, request: ModelRequest) -> AdmitRequest:
        """What is to be asked about ``request``."""
        return cls(
            key=key,
            operation=request.operation,
            models=list(request.models),
            tools=list(request.tools),
            max_tokens=request.max_tokens,
        )

    def request(self) -> ModelRequest:
        """The same, without its body."""
        return ModelRequest(
            operation=self.operation,
            models=tuple(self.models),
            body={},
            tools=tuple(self.tools),
            max_tokens=self.max_tokens,
        )


class Admitted(_Message):
    """An ``Admission``, with the replicas as they were."""

    tenant: str
    principal: str
    decision: str
    replicas: dict[str, list[Replica]]
    tokens_limit: int | None = None

    @classmethod
    def of(cls, admission: Admission) -> Admitted:
        """To be sent."""
        return cls(
            tenant=admission.tenant,
            principal=admission.principal,
            decision=admission.decision,
            replicas={name: list(admission.replicas(name)) for name in admission.deployments},
            tokens_limit=admission.tokens_limit,
        )

    def admission(self) -> Admission:
        """As it was received."""
        return Admission(
            tenant=self.tenant,
            principal=self.principal,
            decision=self.decision,
            deployments=tuple(self.replicas),
            replicas=lambda name: self.replicas.get(name, []),
            tokens_limit=self.tokens_limit,
        )


class ModelsRequest(_Message):
    """``name``: that one only, by name or alias."""

    key: str | None = None
    name: str | None = None


class KeyRequest(_Message):
    """Names a replica; the control plane knows which secret it has."""

    tenant: str
    deployment: str
    replica: str


class KeyAnswer(_Message):
    """``why``: it cannot be had."""

    key: str | None = None
    why: str = ""


class UsageBatch(_Message):
    """What calls used, at most ``BATCH_MOST`` of them. Sent again under the same ``id`` until it is answered."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    used: Annotated[list[Usage], msgspec.Meta(max_length=BATCH_MOST)]


class NoRelay(_Message):
    """The node was not reached: no model server has answered. ``why`` is fit for callers."""

    why: str


class Refusal(_Message):
    """A ``GatewayRefused``, sent with its status."""

    code: Code
    message: str
    fix: str = ""
    param: str | None = None
    decision: str | None = None
    retry_after: int | None = None

    @classmethod
    def of(cls, no: GatewayRefused) -> Refusal:
        """To be sent."""
        return cls(
            code=no.code,
            message=no.message,
            fix=no.fix,
            param=no.param,
            decision=no.decision,
            retry_after=no.retry_after,
        )

    def error(self) -> GatewayRefused:
        """As it was received."""
        return GatewayRefused(
            self.code,
            self.message,
            fix=self.fix,
            param=self.param,
            decision=self.decision,
            retry_after=self.retry_after,
        )


def encoded(value: Any) -> bytes:
    """A message's bytes."""
    return msgspec.json.encode(value)
