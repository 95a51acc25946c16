"""What the endpoints need of the engine: commands, and to be woken when a run has news."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from controlplane.identity import Principal
from controlplane.workflows.compiled import CompiledWorkflow


class Subscription(Protocol):
    """Waits for news of one run."""

    def since(self, after_seq: int) -> list[dict[str, Any]] | None:
        """Durable events past ``after_seq``, or ``None`` if only the store has all of them."""

    async def wait(self, after_seq: int, timeout: float) -> None:  # noqa: ASYNC109
        """Return when the run has committed events after ``after_seq``, new live progress, or after ``timeout`` s."""


class Hub(Protocol):
    """Where the engine says that runs have news."""

    closing: bool
    """The process stops: streams end."""

    def subscribe(self, run_id: str) -> AbstractAsyncContextManager[Subscription]:
        """Wakes for one run."""

    def live(self, run_id: str) -> Mapping[str, Mapping[str, Any]]:
        """The latest progress of running steps: path -> {fraction, text, at}. Never stored."""


class RunCommands(Protocol):
    """What changes runs. All raise ``ApiError`` for what is refused, and return when it is durable."""

    @property
    def hub(self) -> Hub: ...

    async def submit(
        self,
        principal: Principal,
        run_id: str,
        compiled: CompiledWorkflow,
        definition: dict[str, Any],
        input: Any,
        labels: Any,
    ) -> None:
        """Admit a run under this new id."""

    async def validate(self, principal: Principal, document: dict[str, Any], input: Any) -> dict[str, Any]:
        """What would happen; nothing does."""

    async def cancel(self, principal: Principal, run_id: str, reason: str) -> bool:
        """Begin to cancel; ``False`` if nothing was begun: at its end, or not to be had at this moment."""

    async def decide_approval(self, principal: Principal, run_id: str, path: str, approve: bool, comment: str) -> None:
        """Answer a waiting approval."""


class Inventory(Protocol):
    """The live view of nodes."""

    def view(self) -> list[dict[str, Any]]:
        """Every known node as ``GET /v1/nodes`` shows it."""
