"""The node daemon: registers, pulls, runs, reports, keeps its lease, drains.

    work lane     parked long poll ─► accept ─► an inline answer, or a task for each attempt
    report lane   reports as soon as there are any, and every heartbeat, ─► acks, directives, the lease renewed
    lease watch   frozen when it lapses, killed when the hold is over, thawed when it is renewed
    call lanes    authorize, results, output: each batches what queued while its last request was away

All of them are tasks of one group. A failure of the control plane never ends one; a defect outside an attempt does.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from dataplane.artifact_cache import ArtifactCache
from dataplane.attempts import Attempt, Ending
from dataplane.backoff import MOST_SECONDS, Backoff, insist, unless
from dataplane.client import ControlPlaneUnavailable, HttpControlPlane, RequestRefused, TokenRefused
from dataplane.config import NodeConfig, keep_secret, stable_identity
from dataplane.custody import Custody
from dataplane.data_roots import DataRoots
from dataplane.egress import Lookup, system_lookup
from dataplane.forwarder.flow_log import FlowLog
from dataplane.forwarder.forwarder import Forwarder
from dataplane.guest_calls import GuestCalls
from dataplane.health import HEARD
from dataplane.http_calls import HttpCalls
from dataplane.image_preparation import ImagePreparation
from dataplane.inputs import Inputs
from dataplane.inventory import Inventory
from dataplane.lanes import Lane
from dataplane.leases import Lease
from dataplane.mcp.calls import McpCalls
from dataplane.models.engines import model_servers
from dataplane.outage import Outage
from dataplane.output_spool import OutputSpool
from dataplane.protocol import (
    FEATURES,
    Assignment,
    Directive,
    PullRequest,
    PullResponse,
    Register,
    Registered,
    Report,
)
from dataplane.registration import Registration
from dataplane.report_queue import SMALL_BYTES, ReportQueue
from dataplane.runner import Runner
from dataplane.serving.app import NodeApp, Standing
from dataplane.serving.reach import Reach
from dataplane.tool_gateway import ToolGateway
from sandboxes.driver import Driver
from sandboxes.errors import DriverFailed
from sandboxes.execution import ConnectionHandler, ToolHandler
from sandboxes.spec import Tier

PARK_SECONDS = 20.0
ASSIGNMENTS_MOST = 256

log = structlog.get_logger("stockade.node")


class NodeDaemon:
    """One node. ``run`` ends after ``drain`` or ``stop``; make a new one for a new start."""

    def __init__(
        self,
        config: NodeConfig,
        drivers: Mapping[Tier, Driver],
        absent: Mapping[Tier, str] | None = None,
        *,
        lease: Lease | None = None,
        lookup: Lookup = system_lookup,
    ) -> None:
        self._config = config
        self._drivers = drivers
        self._identity, self._proof = stable_identity(config)
        self._boot_id = secrets.token_hex(8)
        self._heartbeat_seconds = 3.0
        self._heartbeat_due = 0.0
        self._node = ""
        self._draining = False
        self._idle, self._stopped = anyio.Event(), anyio.Event()
        self.lease = lease or Lease()
        self._custody = Custody(self.lease, drivers, self._end)
        self._attempts = self._custody.attempts
        self._reports = ReportQueue()
        self._http = HttpCalls(lookup)
        self._cache = ArtifactCache(config.state_dir / "artifacts", config.cache_bytes)
        roots = DataRoots(config.data)
        self._images = ImagePreparation(drivers, self._tell_soon)
        self.models = model_servers(config, self._tell_soon)
        self._inventory = Inventory(config, drivers, absent or {}, roots, self._cache, self.models)
        inner = HttpControlPlane(config.checked_url(), config.read_join_token(), config.ca_file)
        self._control_plane = Registration(inner, self._describe, self._accepted)
        self._standing = Standing()
        self._app = NodeApp(self._standing, self.models)
        self.reach = Reach(
            self._app.web_app, config.checked_url(), lambda: inner.token, ca_file=config.ca_file, listen=config.listen
        )
        self._authorize = Lane(self._control_plane.authorize)
        self._record = Lane(self._control_plane.record)
        self._spool = OutputSpool(self._control_plane, config.state_dir / "spool")
        self._mcp = McpCalls(self._control_plane, drivers, roots, lookup)
        self._gateway = ToolGateway(self._control_plane, self._http, self._mcp, self.lease)
        self._flows = FlowLog(self._control_plane.flows)
        self._lookup = lookup
        self._runner = Runner(
            control_plane=self._control_plane,
            drivers=drivers,
            inputs=Inputs(self._control_plane, self._cache, roots),
            gateway=self._gateway,
            spool=self._spool,
            lease=self.lease,
            guest_calls=self._guest_calls,
            forwarder=self._forwarder,
            flows=self._flows,
        )
        self._tasks: anyio.abc.TaskGroup | None = None

    async def run(self, *, ready: anyio.Event | None = None) -> None:
        """Serve until drained or stopped. Raises ``ConfigError`` if the control plane will not have this node."""
        pid_file = self._config.state_dir / "node.pid"
        try:
            await anyio.to_thread.run_sync(self._prepare_state, pid_file)
            await self._inventory.find_gpus()
            for tier, driver in self._drivers.items():
                try:
                    await driver.reap(keep=())
                except (DriverFailed, OSError) as error:
                    log.error("leftovers of an earlier daemon stay", tier=tier, error=str(error))
            await self.models.adopt()
            sent = self.lease.clock()
            outage = Outage(self._config.checked_url(), self._config.read_join_token())
            answer = await unless(self._stopped, insist(self._control_plane.join, outage.failed))
            if answer is None:
                return
            self.lease.renew(sent)
            tiers = sorted(str(tier) for tier in self._drivers)
            log.info("registered", node=answer.node, identity=self._identity, tiers=tiers)
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                for serve in (
                    self._work_lane,
                    self._report_lane,
                    self._custody.watch,
                    self._authorize.serve,
                    self._record.serve,
                    self._spool.serve,
                    self._flows.serve,
                    self._inventory.refresh_data,
                    self._inventory.refresh_gpus,
                    self.models.serve,
                    self._mcp.serve,
                    self.reach.serve,
                    self._images.prepare_usual,
                ):
                    tasks.start_soon(serve)
                if ready is not None:
                    ready.set()
                await self._stopped.wait()
                tasks.cancel_scope.cancel()
        finally:
            await self.models.close()
            with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                for driver in self._drivers.values():
                    await driver.close()
                await self._http.close()
                await self._app.close()
                await self._control_plane.close()
            self._spool.close()
            pid_file.unlink(missing_ok=True)

    async def drain(self, seconds: float | None = None) -> None:
        """Take nothing new, let what runs finish for ``seconds``, end the rest, deliver the reports, stop."""
        if self._draining:
            return
        self._draining = True
        self._tell_soon()
        log.info("draining", attempts=len(self._attempts))
        with anyio.move_on_after(self._config.drain_seconds if seconds is None else seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.models.drain)
                await self._until_idle()
        for attempt in list(self._attempts.values()):
            self._end(attempt, "lost", "the node was drained before it ended")
        with anyio.move_on_after(10):
            await self._until_idle()
            while len(self._reports):
                await self._reports.settled()
        self.stop()

    def stop(self) -> None:
        """End now: sandboxes are destroyed, what was not reported stays unreported."""
        self._stopped.set()

    async def _until_idle(self) -> None:
        while self._attempts:
            self._idle = anyio.Event()
            await self._idle.wait()

    def _prepare_state(self, pid_file: Path) -> None:
        self._cache.load()
        pid_file.write_text(f"{os.getpid()}\n")
        keep_secret(self._config.state_dir / "node.token", self._config.read_join_token())

    # --- registration

    def _describe(self) -> Register:
        return self._inventory.registration(self._identity, self._proof, self._boot_id)

    def _accepted(self, answer: Registered) -> None:
        self._node = answer.node
        self._standing.heard(answer)
        self._heartbeat_seconds = answer.heartbeat_seconds
        self.lease.configure(answer.lease_seconds, answer.hold_seconds)
        self._custody.changed()

    # --- lanes

    async def _work_lane(self) -> None:
        backoff = Backoff(min(MOST_SECONDS, self._heartbeat_seconds))
        while True:
            request = PullRequest(
                node=self._node,
                boot_id=self._boot_id,
                lane="work",
                max=0 if self._draining else ASSIGNMENTS_MOST,
                wait_seconds=PARK_SECONDS,
            )
            began = self.lease.clock()
            try:
                response = await self._control_plane.pull(request)
            except (ControlPlaneUnavailable, RequestRefused, TokenRefused) as error:
                await self._outage("work", error, backoff)
                continue
            backoff.reset()
            self._take(response)
            if not response.assignments and not response.directives and self.lease.clock() - began < 0.01:
                await backoff.wait()  # a control plane that does not park is not asked in a tight loop

    async def _report_lane(self) -> None:
        backoff = Backoff(min(MOST_SECONDS, self._heartbeat_seconds))
        while True:
            await self._reports.wait(max(0.0, self._heartbeat_due - self.lease.clock()))
            now = self.lease.clock()
            heartbeat = None
            if now >= self._heartbeat_due:
                self._heartbeat_due = now + self._heartbeat_seconds
                held = self._reports.held()
                heartbeat = self._inventory.heartbeat(self._attempts.values(), held, draining=self._draining)
            batch = self._reports.batch()
            if heartbeat is None and not batch:
                continue
            request = PullRequest(
                node=self._node, boot_id=self._boot_id, lane="report", heartbeat=heartbeat, reports=batch
            )
            generation = self._control_plane.generation
            try:
                response = await self._control_plane.pull(request)
            except (ControlPlaneUnavailable, RequestRefused, TokenRefused) as error:
                self._heartbeat_due = 0.0
                await self._outage("report", error, backoff)
                continue
            backoff.reset()
            for report, ack in zip(batch, response.acks, strict=False):
                if ack.stale:
                    log.warning("report refused: its fence is stale", attempt=report.attempt, fence=report.fence)
            for report in self._reports.settle(response.acks[: len(batch)]):
                log.error("report given up", attempt=report.attempt, fence=report.fence)
            self._take(response)
            if heartbeat is not None:
                if generation == self._control_plane.generation:
                    self._inventory.told(heartbeat)
                await self._custody.renew(now)
                await anyio.to_thread.run_sync((self._config.state_dir / HEARD).touch)

    async def _outage(self, lane: str, error: Exception, backoff: Backoff) -> None:
        wait = backoff.next_seconds()
        log.warning("control plane not reached", lane=lane, error=str(error)[:300], retry_seconds=round(wait, 3))
        await anyio.sleep(wait)

    # --- what comes in

    def _tell_soon(self) -> None:
        """Let the next heartbeat go now."""
        self._heartbeat_due = 0.0
        self._reports.wake()

    def _take(self, response: PullResponse) -> None:
        for directive in response.directives:
            self._obey(directive)
        for assignment in response.assignments:
            self._accept(assignment)
        if response.models is not None and not self._draining:
            self.models.want(response.models)

    def _accept(self, assignment: Assignment) -> None:
        call = assignment.call
        if call is not None and call.builtin is not None and call.builtin.name == "noop" and not assignment.requires:
            self._reports.put(
                Report(
                    attempt=assignment.attempt,
                    fence=assignment.fence,
                    reason="tool",
                    has_result=True,
                    result=call.builtin.args,
                )
            )
            return
        key = (assignment.attempt, assignment.fence)
        if key in self._attempts:
            return
        for older in list(self._attempts.values()):
            if older.assignment.attempt == assignment.attempt:
                self._end(older, "cancelled", "superseded by a newer fence")
        missing = sorted(set(assignment.requires) - FEATURES)
        if missing or self._draining:
            why = f"this node lacks {', '.join(missing)}: update it" if missing else "the node is draining"
            kind = "driver_failed" if missing else "lost"
            self._reports.put(Report(attempt=key[0], fence=key[1], platform_error=kind, message=why))
            return
        attempt = Attempt(assignment)
        self._attempts[key] = attempt
        self._spawn(self._run_attempt, attempt)

    async def _run_attempt(self, attempt: Attempt) -> None:
        try:
            report = await self._runner.run(attempt)
            self._reports.put(report, SMALL_BYTES + len(msgspec.json.encode(report)))
            log.info(
                "attempt ended",
                attempt=report.attempt,
                fence=report.fence,
                reason=str(report.reason),
                platform_error=report.platform_error,
            )
        finally:
            del self._attempts[attempt.key]
            attempt.done.set()
            self._idle.set()

    def _obey(self, directive: Directive) -> None:
        match directive.kind:
            case "cancel":
                attempt = self._attempts.get((directive.attempt, directive.fence))
                if attempt is not None:
                    self._end(attempt, "cancelled", directive.reason)
            case "drain":
                self._spawn(self.drain)
            case "prepare":
                self._spawn(self._images.prepare, directive.tier, directive.image)
            case "models":
                self._tell_soon()
            case "model_log":
                self._spawn(self.models.send_log, directive.replica, self._control_plane)
            case "rejoin":
                self._spawn(self._rejoin, self._control_plane.generation)

    def _spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        if self._tasks is None:
            raise RuntimeError("the node is not running")
        self._tasks.start_soon(function, *args)

    def _end(self, attempt: Attempt, ending: Ending, why: str) -> None:
        self._spawn(attempt.end, ending, why)

    def _guest_calls(self, attempt: Attempt) -> ToolHandler:
        return GuestCalls(
            attempt,
            gateway=self._gateway,
            lease=self.lease,
            authorize=self._authorize,
            record=self._record,
            superseded=lambda old: self._end(old, "cancelled", "superseded by a newer fence"),
        )

    def _forwarder(self, attempt: Attempt) -> ConnectionHandler:
        return Forwarder(attempt, lease=self.lease, flows=self._flows, lookup=self._lookup)

    # --- in the background

    async def _rejoin(self, generation: int) -> None:
        try:
            await self._control_plane.rejoin(generation)
        except ControlPlaneUnavailable as error:
            log.warning("registering again failed", error=str(error)[:300])
