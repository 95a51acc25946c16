"""Everything an endpoint may use, made once a process: ``build_services`` is the composition root.

async with build_services(settings) as services: …        # what it opened is closed in reverse order
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio.to_thread

from controlplane.artifacts.artifacts import Artifacts
from controlplane.artifacts.blobs import FileBlobs
from controlplane.artifacts.output_log import OutputLog
from controlplane.config import Settings
from controlplane.engine import Engine, engine
from controlplane.errors import not_yet
from controlplane.idempotency import Idempotency
from controlplane.identity import Identities
from controlplane.runs.definitions import Definitions
from controlplane.runs.journal import Journal
from controlplane.runs.ports import Inventory, RunCommands
from controlplane.secrets.broker import SecretBroker
from controlplane.secrets.sealing import Sealer
from controlplane.secrets.store import DatabaseSecrets, SecretStore
from controlplane.store import Store
from controlplane.tools.registry import ToolRegistry


@dataclass(frozen=True, kw_only=True)
class PolicyStatus:
    """What decides, and whether it does."""

    revision: str
    engine: str
    healthy: bool


def _no_policy() -> PolicyStatus:
    return PolicyStatus(revision="", engine="", healthy=False)


@dataclass(kw_only=True)
class Services:
    """``run_commands``, ``inventory`` and ``policy_status`` are the engine's; without it the rest still answers."""

    settings: Settings
    store: Store
    journal: Journal
    identities: Identities
    idempotency: Idempotency
    secrets: SecretStore
    broker: SecretBroker
    tools: ToolRegistry
    artifacts: Artifacts
    output: OutputLog
    definitions: Definitions
    engine: Engine | None = None
    run_commands: RunCommands | None = None
    inventory: Inventory | None = None
    policy_status: Callable[[], PolicyStatus] = field(default=_no_policy)

    @property
    def runs(self) -> RunCommands:
        """Raises: ApiError not-yet when this process has no engine."""
        if self.run_commands is None:
            raise not_yet("Running workflows in this process")
        return self.run_commands


@asynccontextmanager
async def build_services(settings: Settings) -> AsyncIterator[Services]:
    """All of it: what ``open_services`` opens, and the engine."""
    async with (
        open_services(settings) as services,
        engine(
            settings, services.store, services.journal, services.identities, services.tools, services.broker
        ) as running,
    ):
        services.engine = running
        services.run_commands = running.service
        services.inventory = running.inventory
        services.policy_status = lambda: PolicyStatus(
            revision=running.policy.revision, engine=running.policy.name, healthy=running.policy.is_ready
        )
        yield services


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open the state directory, migrate, start the journal, make the first key. No engine: nothing runs."""
    async with AsyncExitStack() as stack:
        store = await anyio.to_thread.run_sync(_open_store, settings)
        stack.callback(store.close)
        journal = Journal(store)
        journal.start()
        stack.push_async_callback(journal.close)
        sealer = await anyio.to_thread.run_sync(Sealer.from_file, settings.secrets_key)
        blobs = await anyio.to_thread.run_sync(FileBlobs, settings.root / "artifacts")
        output = await anyio.to_thread.run_sync(OutputLog, settings.root / "output", settings.max_output_bytes)
        secrets = DatabaseSecrets(store, journal, sealer)
        services = Services(
            settings=settings,
            store=store,
            journal=journal,
            identities=Identities(store, journal, settings.tenant),
            idempotency=Idempotency(store, journal, sealer, settings.idempotency_seconds),
            secrets=secrets,
            broker=SecretBroker(secrets),
            tools=ToolRegistry(store, journal),
            artifacts=Artifacts(store, journal, blobs, settings.max_artifact_bytes),
            output=output,
            definitions=Definitions(store),
        )
        await services.tools.load()
        await services.identities.ensure_admin_key(settings.admin_key)
        await services.identities.ensure_join_token(settings.root / "join.token")
        yield services


def _open_store(settings: Settings) -> Store:
    settings.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store(settings.database)
    store.migrate()
    return store
