"""A control plane that has no models: every name is unknown to it."""

from __future__ import annotations

from controlplane.authorization.values import Decision
from controlplane.inference.values import ModelAnswer, ModelCall, ModelFailed


class NoModels:
    """The port ``Models`` of a process without deployments."""

    async def decide(self, call: ModelCall) -> Decision:
        """Raises: ModelFailed."""
        raise ModelFailed("not_found", f"there is no model {call.models[0]!r}: this control plane serves none")

    async def complete(self, call: ModelCall) -> ModelAnswer:
        """Raises: ModelFailed."""
        raise ModelFailed("not_found", f"there is no model {call.models[0]!r}: this control plane serves none")
