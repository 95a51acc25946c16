"""Doubles for tests of what calls models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.inference.values import Replica


@dataclass(kw_only=True)
class FixedReplicas:
    """``Replicas`` that a test sets: deployment -> its replicas, for every tenant."""

    known: dict[str, Sequence[Replica]]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def of(self, tenant: str, deployment: str) -> list[Replica]:
        """See the port."""
        return list(self.known.get(deployment, ()))

    def deployments(self, tenant: str) -> list[str]:
        """See the port."""
        return sorted(self.known)

    def resolve(self, tenant: str, name: str) -> str | None:
        """See the port."""
        return name if name in self.known else self.aliases.get(name)
