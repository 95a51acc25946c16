"""Puts the gateway together within the control plane."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.authorization.enforcement import Enforcer
from controlplane.identity import Identities
from controlplane.inference.gateway.authority import Authority, LocalAuthority
from controlplane.inference.gateway.metering import Meter
from controlplane.inference.gateway.models import GatewayModels
from controlplane.inference.gateway.performing import Performer
from controlplane.inference.gateway.upstream import AnyServers, ExternalServers, NodeServers
from controlplane.inference.values import Replicas
from controlplane.nodes.dialing import NodeDialer
from controlplane.runs.journal import Journal
from controlplane.secrets.broker import SecretBroker


@dataclass(frozen=True, kw_only=True)
class ModelGateway:
    """What the OpenAI routes use. ``deadline_seconds`` is how long one call may take until its first token, or, if it
    is not a stream, its end; ``body_bytes_most`` how long a request may be."""

    authority: Authority
    performer: Performer
    deadline_seconds: float
    body_bytes_most: int


@dataclass(frozen=True, kw_only=True)
class LocalGateway:
    """The gateway's parts within the control plane: its routes' and the verbs'."""

    routes: ModelGateway
    models: GatewayModels
    meter: Meter
    replicas: Replicas
    dialer: NodeDialer
    token_hash: str
    """What a gateway process shows."""
    external: ExternalServers

    async def close(self) -> None:
        """End its connections to servers."""
        await self.external.close()


def local_gateway(
    *,
    identities: Identities,
    enforcer: Enforcer,
    replicas: Replicas,
    journal: Journal,
    broker: SecretBroker,
    meter: Meter,
    dialer: NodeDialer,
    token_hash: str,
    private_hosts: frozenset[str],
    deadline_seconds: float,
    body_bytes_most: int,
) -> LocalGateway:
    """Close it at the end."""
    authority = LocalAuthority(
        identities=identities, enforcer=enforcer, replicas=replicas, journal=journal, broker=broker, meter=meter
    )
    external = ExternalServers(authority.key, private_hosts)
    performer = Performer(authority, AnyServers(NodeServers(dialer), external))
    routes = ModelGateway(
        authority=authority,
        performer=performer,
        deadline_seconds=deadline_seconds,
        body_bytes_most=body_bytes_most,
    )
    return LocalGateway(
        routes=routes,
        models=GatewayModels(authority, performer),
        meter=meter,
        external=external,
        replicas=replicas,
        dialer=dialer,
        token_hash=token_hash,
    )
