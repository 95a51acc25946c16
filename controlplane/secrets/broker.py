"""The only reader of secret values: it turns a policy's grant into a lease for one outgoing request."""

from __future__ import annotations

from controlplane.secrets.sealing import SealBroken
from controlplane.secrets.store import SecretStore


class SecretUnavailable(Exception):
    """The named secret does not exist or cannot be opened. The message is fit for a step's error."""


class SecretBroker:
    """Call it only after policy allowed this secret for this destination."""

    def __init__(self, store: SecretStore) -> None:
        self._store = store

    async def lease(self, tenant: str, name: str) -> str:
        """The value, for one ``SecretLease``; keep it in memory and out of logs. Raises: SecretUnavailable."""
        try:
            value = await self._store.get(tenant, name)
        except SealBroken as error:
            raise SecretUnavailable(f"the secret {name!r} cannot be opened: {error}") from None
        if value is None:
            raise SecretUnavailable(f"there is no secret {name!r}; set it with: stockade secret set {name}")
        return value

    async def names(self, tenant: str) -> frozenset[str]:
        """Which secrets exist, so that a workflow naming another is refused before it starts."""
        return frozenset(one.name for one in await self._store.names(tenant))
