"""The engine of one process: policy, journal, controller, dispatcher and their loops, started and stopped together.

async with engine(...) as parts: …      # recovers open runs first, ends its loops last
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import structlog
from sqlmodel import select

from controlplane.authorization.bundle import Bundle, load_bundle
from controlplane.authorization.embedded import EmbeddedEngine
from controlplane.authorization.enforcement import Enforcer
from controlplane.authorization.engine import PolicyEngine
from controlplane.authorization.values import EntryPoint, PolicyUnavailable
from controlplane.config import Settings
from controlplane.identity import Identities, kept_token
from controlplane.inference.deployments import Deployments
from controlplane.inference.gateway import questions as model_questions
from controlplane.inference.gateway.assembly import LocalGateway, local_gateway
from controlplane.inference.gateway.metering import Meter
from controlplane.inference.reconciler import Reconciler
from controlplane.inference.values import Models
from controlplane.nodes.dialing import ChosenDialer, DirectDialer, StreamTokens, TunnelDialer, Tunnels
from controlplane.nodes.inventory import Inventory, Node, Reservation
from controlplane.placement.catalogue import Catalogue
from controlplane.placement.dispatcher import Dispatcher
from controlplane.runs import recovery
from controlplane.runs.controller import Controller
from controlplane.runs.flows import FlowRecords
from controlplane.runs.gateway import Gateway
from controlplane.runs.hub import Hub
from controlplane.runs.journal import Journal
from controlplane.runs.model_steps import ModelSteps
from controlplane.runs.service import RunService
from controlplane.runs.state import RunState, StepState
from controlplane.runs.transitions import Machine
from controlplane.runs.work import WorkRefused, prepare
from controlplane.secrets.broker import SecretBroker, SecretUnavailable
from controlplane.secrets.sealing import Sealer
from controlplane.store import Store
from controlplane.tables import NodeRow
from controlplane.tools.registry import ToolRegistry
from controlplane.workflows.spec import WORK, Verb
from dataplane.protocol import Register
from dataplane.serving.tokens import Signer

log = structlog.get_logger(__name__)
RELOAD_SECONDS = 1.0
RELOAD_MOST_SECONDS = 300.0


@dataclass(kw_only=True)
class Engine:
    """The parts that endpoints use."""

    settings: Settings
    store: Store
    journal: Journal
    policy: PolicyEngine
    inventory: Inventory
    controller: Controller
    dispatcher: Dispatcher
    gateway: Gateway
    flows: FlowRecords
    service: RunService
    deployments: Deployments
    inference: LocalGateway
    tunnels: Tunnels
    stream_tokens: StreamTokens
    reloading: dict[str, float]
    """Runs to take from the database again -> when, by the monotonic clock."""
    tries: dict[str, int]
    opa_bundle: bytes
    """What an OPA server fetches; empty when none decides."""

    async def recover(self) -> None:
        """Nodes, the models they serve, then every open run."""
        tenant = self.settings.tenant
        rows = await self.store.read(lambda s: s.exec(select(NodeRow).where(NodeRow.tenant == tenant)).all())
        for row in rows:
            declared = msgspec.json.decode(row.declared, type=Register)
            declared.images = [msgspec.structs.replace(one, warm=0) for one in declared.images]
            self.inventory.add(
                Node(
                    id=row.id,
                    tenant=tenant,
                    declared=declared,
                    token_hash=row.token_hash,
                    proof_hash=row.proof_hash,
                    last_seen=time.monotonic(),
                    seen_ns=row.seen_ns,
                    silent_since_start=True,
                )
            )
        await self.deployments.load()
        for run_id in await self.store.read(lambda s: recovery.open_runs(s, tenant)):
            try:
                await self.load(run_id)
            except Exception:  # one run that cannot be read must not keep the others from going on
                log.exception("a run was not recovered; it is tried again", run=run_id)
                self.reload(run_id)

    async def load(self, run_id: str) -> None:
        """Take one open run into memory and let it go on."""
        tenant = self.settings.tenant
        found = await self.store.read(lambda s: recovery.load(s, tenant, run_id))
        self.controller.taken_up(run_id)
        if found is None:
            return
        run, pinned = found
        controller = self.controller
        controller.runs[run_id] = run
        controller.pinned[run_id] = pinned
        resting: list[StepState] = []
        for step in list(run.steps.values()):
            if step.terminal:
                continue
            if step.status == "running" and step.attempt is not None:
                if step.spec.verb is Verb.LLM:
                    self._call_again(run, step)
                else:
                    await self._reattach(run, step, pinned)
            elif step.due_ns is not None:
                controller.watch(run, step)
            elif step.attempt is None and step.status in ("ready", "waiting") and step.spec.verb in WORK:
                resting.append(step)

        def go_on(machine: Machine) -> None:
            for step in list(run.steps.values()):
                machine.resume(step)
            machine.start()

        controller.apply(run, go_on)
        controller.dispatch(run, resting)

    def _call_again(self, run: RunState, step: StepState) -> None:
        """The model's answer went with the process that waited for it: the same call is made again."""
        why = "the control plane stopped while the model was answering; the call is made again"
        self.controller.attempts[step.attempt or ""] = (run, step)
        self.controller.apply(run, lambda machine: machine.lost(step, "model", why))

    async def _reattach(self, run: RunState, step: StepState, pinned: dict[str, str]) -> None:
        """The attempt may be running, lost on the way, or done and not yet reported: its node says which."""
        node = self.inventory.nodes.get(step.node or "")
        attempt = step.attempt or ""
        if node is None or node.lost:
            self.controller.attempts[attempt] = (run, step)
            self.controller.apply(run, lambda machine: machine.lost(step, "node_lost", "its node is gone"))
            return
        self.controller.attempts[attempt] = (run, step)
        try:
            one = prepare(run, step, pinned, self.dispatcher.tools, time.time_ns())
            await self.dispatcher.catalogue.locate([one])
            leased = await self.dispatcher.lease(run.tenant, one.call)
        except (WorkRefused, SecretUnavailable) as refused:
            # What it needs has changed while nobody looked: dispatching it anew fails it with the reason.
            why = str(refused)
            self.controller.apply(run, lambda machine: machine.lost(step, "node_lost", why))
            return
        if self.controller.current(attempt, step.fence) is None:
            return
        gpus = tuple(step.detail.get("gpus", ()))
        if one.code is not None and step.tier is not None:
            one.code.sandbox.tier, one.code.sandbox.gpus = step.tier, list(gpus)
        assignment = one.assignment(step, attempt, step.fence, step.number, leased)
        demand = one.demand
        kept = node.assign(
            Reservation(
                assignment=assignment,
                cpu_milli=demand.cpu_milli,
                memory_bytes=demand.memory_bytes,
                gpus=gpus,
                work=one.work,
                began=time.monotonic() - max(0, time.time_ns() - (step.started_ns or time.time_ns())) / 1e9,
                sent=0,
            )
        )
        if not kept:
            self.controller.tell_cancel(node.id, attempt, step.fence, "its GPUs belong to another")
            self.controller.apply(run, lambda machine: machine.lost(step, "node_lost", "its GPUs belong to another"))
            return
        if step.cancelling:
            self.controller.tell_cancel(node.id, attempt, step.fence, step.detail.get("cancelling", "cancelled"))

    async def reap_nodes(self) -> None:
        """Declare silent nodes lost when their lease is over."""
        settings = self.settings
        pause = min(0.5, settings.lease_seconds / 4)
        looked = time.monotonic()
        while True:
            await asyncio.sleep(pause)
            now = time.monotonic()
            if now - looked > 4 * pause:
                # It was this process that stood still: what the nodes said meanwhile has not been read yet.
                for node in self.inventory.nodes.values():
                    node.last_seen += now - looked
            looked = now
            for node in list(self.inventory.expired(settings.lease_seconds, settings.hold_seconds)):
                node.lost = True
                log.warning("node lost", node=node.id, name=node.name)
                self.controller.node_gone(node.id, "node_lost", f"node {node.name} did not answer for its lease")

    def reload(self, run_id: str) -> None:
        """Take a run whose transition was not stored from the database again, later each time that fails."""
        tries = self.tries[run_id] = self.tries.get(run_id, 0) + 1
        self.reloading[run_id] = time.monotonic() + min(RELOAD_MOST_SECONDS, RELOAD_SECONDS * 2.0 ** (tries - 1))

    async def reload_parked(self) -> None:
        """Load parked runs when they are due, until it works."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            for run_id in [one for one, due in self.reloading.items() if due <= time.monotonic()]:
                del self.reloading[run_id]
                try:
                    await self.load(run_id)
                    if run_id not in self.controller.runs:
                        self.tries.pop(run_id, None)
                except Exception:
                    log.exception("reloading failed", run=run_id)
                    self.reload(run_id)


@asynccontextmanager
async def engine(
    settings: Settings,
    store: Store,
    journal: Journal,
    identities: Identities,
    tools: ToolRegistry,
    broker: SecretBroker,
    models: Models | None = None,
) -> AsyncIterator[Engine]:
    """Start everything that makes runs advance. ``models`` replaces the gateway for the verbs, in tests."""
    overlays = [settings.policy_dir.expanduser()] if settings.policy_dir is not None else []
    policy, packed = await asyncio.to_thread(_policy_engine, settings, load_bundle(overlays))
    try:
        await policy.start()
    except PolicyUnavailable as problem:
        # An OPA server fetches its bundle from us, so it cannot be ready before we are.
        log.warning("policy engine not ready; it goes on trying", engine=policy.name, why=str(problem))
    inventory, hub = Inventory(settings.node_bytes_per_second), Hub()
    enforcer = Enforcer(policy, {EntryPoint.MODEL: model_questions.IMPLEMENTED})
    private_hosts = frozenset(settings.private_hosts)
    controller = Controller(journal, inventory, hub)
    catalogue = Catalogue(store, inventory)
    dispatcher = Dispatcher(controller, enforcer, tools, broker, private_hosts, catalogue)
    deployments = Deployments(store, journal, broker, inventory, private_hosts)
    sealer = await asyncio.to_thread(Sealer.from_file, settings.secrets_key)
    tunnels, stream_tokens = Tunnels(), StreamTokens(inventory, sealer.derived, Signer(time.time))
    certificate = settings.node_certificate_file
    direct = DirectDialer(inventory.address, stream_tokens, ca_file=settings.node_ca_file, certificate=certificate)
    inference = local_gateway(
        token_hash=await asyncio.to_thread(kept_token, settings.gateway_token, "sg"),
        dialer=ChosenDialer(inventory.address, direct, TunnelDialer(tunnels, stream_tokens)),
        identities=identities,
        enforcer=enforcer,
        replicas=deployments,
        journal=journal,
        broker=broker,
        meter=Meter(store, journal),
        private_hosts=private_hosts,
        deadline_seconds=settings.model_seconds,
        body_bytes_most=settings.max_model_body_bytes,
    )
    model_steps = ModelSteps(controller, models or inference.models, tools)
    parts = Engine(
        settings=settings,
        store=store,
        journal=journal,
        policy=policy,
        inventory=inventory,
        controller=controller,
        dispatcher=dispatcher,
        gateway=Gateway(controller, dispatcher),
        flows=FlowRecords(controller),
        service=RunService(controller, enforcer, tools, inventory, hub, broker, catalogue),
        deployments=deployments,
        inference=inference,
        tunnels=tunnels,
        stream_tokens=stream_tokens,
        reloading={},
        tries={},
        opa_bundle=packed,
    )
    controller.reload = parts.reload
    try:
        await parts.recover()
        loops = (
            dispatcher.run(),
            dispatcher.retry_waiting(),
            model_steps.run(),
            controller.run_timers(),
            Reconciler(parts.deployments, inventory, journal).run(),
            parts.reap_nodes(),
            parts.reload_parked(),
        )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(loop) for loop in loops]
            yield parts
            for task in tasks:
                task.cancel()
    finally:
        await inference.close()
        await direct.close()
        await policy.close()


def _policy_engine(settings: Settings, bundle: Bundle) -> tuple[PolicyEngine, bytes]:
    """The engine that was chosen, and what an OPA server fetches."""
    deadline = settings.policy_deadline_seconds
    if settings.policy_engine == "embedded":
        return EmbeddedEngine(bundle, deadline_seconds=deadline), b""
    # Its libraries are needed by whoever chose it only.
    from controlplane.authorization.opa.archive import archive
    from controlplane.authorization.opa.engine import OpaEngine

    return OpaEngine(bundle, settings.opa_address, settings.opa_token, deadline), archive(bundle)
