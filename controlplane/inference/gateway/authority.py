"""What the gateway needs of the control plane, as a port, and its adapter within one process.

    admit      who calls, which deployments the names mean, what policy says; the decision is durable on return
    models     the names to list
    key        of an external service, at call time
    meter      tokens used

A gateway process of its own uses the same port over HTTP (``remote.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from controlplane.authorization.enforcement import Enforcer
from controlplane.authorization.values import Decision, PolicyUnavailable
from controlplane.identity import Identities, Principal
from controlplane.inference.gateway import questions
from controlplane.inference.gateway.metering import Meter, Usage
from controlplane.inference.gateway.refusals import GatewayRefused, denied, policy_unavailable, unknown_model
from controlplane.inference.gateway.requests import ModelRequest
from controlplane.inference.gateway.upstream import Unreachable
from controlplane.inference.values import Replica, Replicas
from controlplane.runs.controller import decision_write
from controlplane.runs.journal import Journal, JournalFailed
from controlplane.secrets.broker import SecretBroker, SecretUnavailable
from controlplane.tables import partition_of

SCOPE = "infer"
"""What a key needs to call models."""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """A call that may be performed: by these deployments, in this order, as ``replicas`` shows them now."""

    tenant: str
    principal: str
    decision: str
    deployments: tuple[str, ...]
    replicas: Callable[[str], Sequence[Replica]]
    tokens_limit: int | None = None
    run: str = ""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A name that can be called."""

    name: str
    is_ready: bool
    context_tokens: int | None = None
    modalities: tuple[str, ...] = ("text",)


class Authority(Protocol):
    """Every method raises ``GatewayRefused`` for a key that may not."""

    async def admit(self, key: str | None, request: ModelRequest) -> Admission:
        """Raises: GatewayRefused for an unknown model, a denial, or when policy does not answer."""

    async def models(self, key: str | None) -> list[Listed]:
        """The caller's models, by name."""

    async def model(self, key: str | None, name: str) -> Listed:
        """One, by name or alias. Raises: GatewayRefused also when there is none."""

    async def key(self, replica: Replica) -> str | None:
        """Raises: Unreachable."""

    def meter(self, usage: Usage) -> None:
        """Count it; never raises."""


class LocalAuthority:
    """``Authority`` beside the control plane's own parts."""

    def __init__(
        self,
        *,
        identities: Identities,
        enforcer: Enforcer,
        replicas: Replicas,
        journal: Journal,
        broker: SecretBroker,
        meter: Meter,
    ) -> None:
        self._identities = identities
        self._enforcer = enforcer
        self._replicas = replicas
        self._journal = journal
        self._broker = broker
        self._meter = meter

    async def admit(self, key: str | None, request: ModelRequest) -> Admission:
        principal = await self._caller(key)
        subject = {"id": principal.id, "kind": principal.kind, "scopes": sorted(principal.scopes)}
        decision, deployments = await self.decide(
            principal.tenant, request, {"subject": subject}, labels={"integrity": "user"}, via="api"
        )
        partition = partition_of(decision.id)
        write = decision_write(principal.tenant, decision, None, "", partition, time.time_ns())
        try:
            await self._journal.write([write])
        except JournalFailed:
            said = "The decision could not be made durable, so nothing was done."
            raise GatewayRefused("not_stored", said, fix="Try again.", retry_after=1) from None
        if not decision.allow:
            raise denied(decision)
        return self.admission(principal.tenant, principal.id, decision, deployments, "")

    async def decide(
        self,
        tenant: str,
        request: ModelRequest,
        asker: Mapping[str, Any],
        *,
        labels: Mapping[str, Any],
        via: Literal["api", "step"],
    ) -> tuple[Decision, tuple[str, ...]]:
        """Policy's answer, and the deployments it is about. Raises: GatewayRefused."""
        names = request.models
        for _ in range(2):
            candidates = [(name, self._replicas.of(tenant, name)) for name in self._resolved(tenant, names)]
            whole = {"run": None, "workflow": None, "step": None, **asker, "tenant": tenant, "now_ns": time.time_ns()}
            try:
                decision = await self._enforcer.ask(
                    questions.question(whole, request, candidates, labels=labels, via=via)
                )
            except PolicyUnavailable as unavailable:
                refusal = unavailable.decision
                raise policy_unavailable(None if refusal is None else refusal.id) from unavailable
            instead = questions.downgraded_to(decision)
            deployments = tuple(name for name, _ in candidates)
            if not decision.allow or instead is None or deployments == (instead,):
                break
            # What is called in its place is asked about like any other.
            names = (instead,)
        return decision, deployments

    def admission(
        self, tenant: str, principal: str, decision: Decision, deployments: tuple[str, ...], run: str
    ) -> Admission:
        """What an allowed call may use."""
        return Admission(
            tenant=tenant,
            principal=principal,
            decision=decision.id,
            deployments=deployments,
            replicas=lambda name: self._replicas.of(tenant, name),
            tokens_limit=questions.tokens_limit(decision),
            run=run,
        )

    async def models(self, key: str | None) -> list[Listed]:
        principal = await self._caller(key)
        return [self._listed(principal.tenant, name) for name in self._replicas.deployments(principal.tenant)]

    async def model(self, key: str | None, name: str) -> Listed:
        tenant = (await self._caller(key)).tenant
        return self._listed(tenant, self._resolved(tenant, [name])[0])

    async def key(self, replica: Replica) -> str | None:
        if replica.secret is None:
            return None
        try:
            return await self._broker.lease(replica.tenant, replica.secret)
        except SecretUnavailable as missing:
            raise Unreachable(str(missing)) from None

    def meter(self, usage: Usage) -> None:
        self._meter.add(usage)

    async def _caller(self, key: str | None) -> Principal:
        principal = await self._identities.authenticate(key) if key else None
        if principal is None:
            raise GatewayRefused(
                "invalid_api_key", "The API key is missing or not valid.", fix="Send `Authorization: Bearer sk_…`."
            )
        if SCOPE not in principal.scopes:
            fix = f"Ask an admin for a key with the scope {SCOPE!r}."
            raise GatewayRefused("scope_missing", f"The key does not have the scope {SCOPE!r}.", fix=fix)
        return principal

    def _resolved(self, tenant: str, names: Sequence[str]) -> list[str]:
        found = []
        for name in names:
            deployment = self._replicas.resolve(tenant, name)
            if deployment is None:
                raise unknown_model(name, self._replicas.deployments(tenant))
            found.append(deployment)
        return list(dict.fromkeys(found))

    def _listed(self, tenant: str, name: str) -> Listed:
        replicas = self._replicas.of(tenant, name)
        return Listed(
            name=name,
            is_ready=any(one.ready for one in replicas),
            context_tokens=next((one.context_tokens for one in replicas), None),
            modalities=tuple(sorted({each for one in replicas for each in one.modalities})) or ("text",),
        )
