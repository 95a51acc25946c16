"""What nodes call (``dataplane.protocol``): raw bodies, msgspec, no framework on the hot path.

A node is known by its bearer token. It speaks for attempts that are current under its own name, and for nothing else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from controlplane.engine import Engine
from controlplane.errors import conflict, invalid_request, too_large, unauthorized
from controlplane.errors import field_problem as problem
from controlplane.ids import new_id
from controlplane.nodes.artifact_wire import download, upload
from controlplane.nodes.callers import answered, bearer_of, body_of, node_of, parts_of
from controlplane.nodes.node import GPUS_MOST, Node
from controlplane.runs import reports
from controlplane.store import Write, upsert
from controlplane.tables import NodeRow
from controlplane.times import rfc3339
from controlplane.tokens import hash_token, make_token
from dataplane.flow_wire import FlowRecord
from dataplane.model_wire import ModelLog
from dataplane.protocol import (
    FEATURES,
    VERSION,
    Ack,
    AuthorizeRequest,
    CallResult,
    Directive,
    Heartbeat,
    OutputChunk,
    PullRequest,
    PullResponse,
    Register,
    Registered,
)

T = TypeVar("T")
WAIT_MOST = 30.0
BATCH_MOST = 256
REGISTER_MOST = 256 * 1024
PROOF_LEAST = 32
AMOUNT_MOST = 2**53
GPU_ID_MOST = 128
_encode = msgspec.json.Encoder().encode


def routes() -> list[Route]:
    """The node wire, to be mounted on the application."""
    return [
        Route("/node/v1/register", register, methods=["POST"]),
        Route("/node/v1/pull", pull, methods=["POST"]),
        Route("/node/v1/authorize", authorize, methods=["POST"]),
        Route("/node/v1/results", results, methods=["POST"]),
        Route("/node/v1/flows", flows, methods=["POST"]),
        Route("/node/v1/output", output, methods=["POST"]),
        Route("/node/v1/model-logs", model_logs, methods=["POST"]),
        Route("/node/v1/artifacts", upload, methods=["PUT"]),
        Route("/node/v1/artifacts/{artifact}", download, methods=["GET"]),
    ]


async def register(request: Request) -> Response:
    """A node joins, or comes back after a restart: a new boot ends its earlier attempts at once."""
    services, engine = parts_of(request)
    tenant = await services.identities.join_tenant(bearer_of(request))
    if tenant is None:
        raise unauthorized("The join token is wrong or has expired: make one with `stockade node join-token`.")
    if int(request.headers.get("content-length") or REGISTER_MOST + 1) > REGISTER_MOST:
        raise too_large(REGISTER_MOST)
    message = await body_of(request, Register)
    _check_claims(message)
    _check_address(message.address, "" if request.client is None else request.client.host)
    if message.version > VERSION or message.version < VERSION - 1:
        fix = f"this control plane speaks version {VERSION}"
        raise invalid_request([problem("/version", f"version {message.version} is not served", fix)])
    missing = {"freeze", "tool_gateway"} - set(message.features)
    if missing:
        raise invalid_request([problem("/features", f"the node lacks {', '.join(sorted(missing))}", "upgrade it")])
    bearer = make_token("sn")
    async with engine.inventory.joining:
        node = await _join(engine, tenant, message, hash_token(bearer))
    settings = services.settings
    answer = Registered(
        node=node.id,
        token=bearer,
        heartbeat_seconds=settings.heartbeat_seconds,
        lease_seconds=settings.lease_seconds,
        hold_seconds=settings.hold_seconds,
        requires=sorted(FEATURES & {"freeze", "tool_gateway"}),
        tenant=tenant,
        stream_key=engine.stream_tokens.key_of(node.token_hash),
        now=time.time(),
    )
    return answered(answer)


async def _join(engine: Engine, tenant: str, message: Register, token_hash: str) -> Node:
    """Store the registration, then let it take the place of an earlier one."""
    known = engine.inventory.by_name(tenant, message.identity)
    proof_hash = hash_token(message.proof)
    if known is not None and known.proof_hash != proof_hash:
        raise conflict(
            f"Another node is named {message.identity}. If that one lost its state folder, "
            f"`stockade node rm {message.identity}` frees the name."
        )
    message.proof = ""
    node = Node(
        id=known.id if known is not None else new_id("node"),
        tenant=tenant,
        declared=message,
        token_hash=token_hash,
        proof_hash=proof_hash,
        last_seen=time.monotonic(),
        seen_ns=time.time_ns(),
    )
    row = {
        "tenant": tenant,
        "id": node.id,
        "identity": message.identity,
        "boot_id": message.boot_id,
        "token_hash": node.token_hash,
        "proof_hash": node.proof_hash,
        "status": "ready",
        "fence": 0,
        "declared": msgspec.json.encode(message).decode(),
        "seen_ns": node.seen_ns,
        "registered_ns": node.seen_ns,
    }
    await engine.journal.write([upsert(NodeRow, row)])
    # From here to ``add`` nothing awaits: no assignment can go to the old boot in between.
    if known is not None and known.declared.boot_id == message.boot_id:
        node.take_over(known)
    elif known is not None:
        engine.controller.node_gone(known.id, "node_lost", f"node {known.name} restarted")
        # Model servers may have outlived the daemon: what is wanted stays, what it says of them comes anew.
        node.models = known.models
        node.models.states.clear()
        # The old boot's attempts are over, and their GPUs free; model servers may have outlived the daemon.
        node.devices = known.devices
        node.devices.left(())
    engine.inventory.add(node)
    return node


async def pull(request: Request) -> Response:
    """Heartbeat and reports in, acknowledgements, assignments and directives out."""
    _services, engine = parts_of(request)
    node = node_of(request, engine)
    message = await body_of(request, PullRequest)
    if message.boot_id != node.declared.boot_id:
        raise unauthorized("Another boot of this node has registered.")
    node.last_seen, node.seen_ns = time.monotonic(), time.time_ns()
    revived = node.lost or node.silent_since_start
    node.lost = node.silent_since_start = False
    if message.heartbeat is not None:
        if node.heard(message.heartbeat):
            _keep(engine, node)
        _cancel_again(engine, node, message.heartbeat)
    if revived or message.heartbeat is not None:
        engine.inventory.changed.set()
    acks = await _report(engine, node, message)
    response = PullResponse(acks=acks)
    if message.heartbeat is not None and message.heartbeat.models is not None:
        response.models = node.models.answer(message.heartbeat.models)
    most = min(message.max, BATCH_MOST)
    if message.lane == "work":
        deadline = time.monotonic() + min(message.wait_seconds, WAIT_MOST)
        while (
            not (node.outbox or node.directives or engine.inventory.closing)
            and (left := deadline - time.monotonic()) > 0
        ):
            node.wake.clear()
            try:
                await asyncio.wait_for(node.wake.wait(), left)
            except TimeoutError:
                break
            if engine.inventory.nodes.get(node.id) is not node:
                break
    if engine.inventory.nodes.get(node.id) is not node:
        raise unauthorized("This node has registered again, or was removed.")
    if message.lane == "work":
        response.assignments = node.take(most)
    while node.directives:
        response.directives.append(node.directives.popleft())
    return answered(response)


def _keep(engine: Engine, node: Node) -> None:
    """What the node declares has changed: a restart must find it as it is now."""
    row = (msgspec.json.encode(node.declared).decode(), node.seen_ns, node.tenant, node.id)
    engine.journal.append([Write("UPDATE node SET declared=?, seen_ns=? WHERE tenant=? AND id=?", row)])


def _check_claims(message: Register) -> None:
    """Amounts that no machine has are a mistake or worse. What else a node says of itself is taken as its word."""
    if len(message.proof) < PROOF_LEAST:
        fix = f"send at least {PROOF_LEAST} random characters, the same at every registration"
        raise invalid_request([problem("/proof", "the proof of the name is too short", fix)])
    for name, amount in msgspec.to_builtins(message.capacity).items():
        if not 0 <= amount <= AMOUNT_MOST:
            fix = f"send 0 to {AMOUNT_MOST}"
            raise invalid_request([problem(f"/capacity/{name}", f"{amount} is not an amount", fix)])
    ids = [one.uuid for one in message.gpus]
    if len(ids) > GPUS_MOST or len(set(ids)) < len(ids) or not all(0 < len(one) <= GPU_ID_MOST for one in ids):
        fix = f"send at most {GPUS_MOST}, each once, with an id of at most {GPU_ID_MOST} characters"
        raise invalid_request([problem("/gpus", "these are not the GPUs of one machine", fix)])


def _check_address(address: str, peer: str) -> None:
    """A node may have itself connected to, and nobody else."""
    if not address:
        return
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.port and address == f"{parts.scheme}://{parts.netloc}"
        private = parts.scheme == "https" or ipaddress.ip_address(parts.hostname or "").is_loopback
        same = ipaddress.ip_address(parts.hostname or "") == ipaddress.ip_address(peer)
    except ValueError:
        good = private = same = False
    if not (good and private and same):
        said = f"it is not an address of this node, which calls from {peer}"
        fix = "send https://IP:PORT of the interface it calls from, or none: its tunnel is enough"
        raise invalid_request([problem("/address", said, fix)])


def _cancel_again(engine: Engine, node: Node, heartbeat: Heartbeat) -> None:
    """Say with every heartbeat what of it must end: the answer that said so before may have been lost."""
    queued = {(one.attempt, one.fence) for one in node.directives if one.kind == "cancel"}
    for attempt, fence in heartbeat.attempts:
        if (attempt, fence) in queued or engine.controller.is_parked(attempt):
            continue
        found = engine.controller.current(attempt, fence)
        if found is not None and found[1].node == node.id:
            if not found[1].cancelling:
                continue
            reason = str(found[1].detail.get("cancelling", "cancelled"))
        else:
            reason = "the fence is not current"
        node.direct(Directive(kind="cancel", attempt=attempt, fence=fence, reason=reason))


async def _report(engine: Engine, node: Node, message: PullRequest) -> list[Ack]:
    """Apply reports; returns when every one of them is durable or refused."""
    if not message.reports:
        return []
    acks: list[Ack | None] = [None] * len(message.reports)
    left = len(acks)
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def keep(index: int) -> Callable[[Ack], None]:
        def answer(ack: Ack) -> None:
            nonlocal left
            acks[index] = ack
            left -= 1
            if left == 0 and not finished.done():
                finished.set_result(None)

        return answer

    for index, report in enumerate(message.reports):
        reports.take(engine.controller, engine.dispatcher.tools, node.id, report, keep(index))
    await finished
    return [ack for ack in acks if ack is not None]


async def authorize(request: Request) -> Response:
    """Tool calls of guests, decided one by one."""
    _services, engine = parts_of(request)
    node = node_of(request, engine)
    requests = await body_of(request, list[AuthorizeRequest])
    return answered(await engine.gateway.authorize(node.id, requests[:BATCH_MOST]))


async def results(request: Request) -> Response:
    """Outcomes of performed calls; durable when acknowledged."""
    _services, engine = parts_of(request)
    node = node_of(request, engine)
    outcomes = await body_of(request, list[CallResult])
    return answered(await engine.gateway.record(node.id, outcomes[:BATCH_MOST]))


async def flows(request: Request) -> Response:
    """Connections of guests; durable when acknowledged."""
    _services, engine = parts_of(request)
    node = node_of(request, engine)
    records = await body_of(request, list[FlowRecord])
    return answered(await engine.flows.record(node.id, records[:BATCH_MOST]))


async def output(request: Request) -> Response:
    """Output of guests, in chunks, and their progress."""
    services, engine = parts_of(request)
    node = node_of(request, engine)
    acks: list[Ack] = []
    for chunk in await body_of(request, list[OutputChunk]):
        found = engine.controller.current(chunk.attempt, chunk.fence)
        if found is None or found[1].node != node.id:
            acks.append(Ack(ok=False, stale=True))
        elif chunk.stream == "progress":
            fraction = min(1.0, max(0.0, chunk.fraction))
            shown = {"fraction": fraction, "text": chunk.text[:200], "at": rfc3339(time.time_ns())}
            engine.controller.hub.progress(found[0].id, found[1].path, shown)
            acks.append(Ack(ok=True))
        elif chunk.offset < 0:
            acks.append(Ack(ok=False, message="an offset is not negative"))
        elif await services.output.append(chunk.attempt, chunk.stream, chunk.offset, chunk.data):
            acks.append(Ack(ok=True))
        else:
            stored = await services.output.size(chunk.attempt, chunk.stream)
            acks.append(Ack(ok=False, message="bytes before this offset are missing", stored_bytes=stored))
    return answered(acks)


async def model_logs(request: Request) -> Response:
    """The ends of model servers' logs that were asked for."""
    _services, engine = parts_of(request)
    node = node_of(request, engine)
    logs = await body_of(request, list[ModelLog])
    return answered([Ack(ok=node.models.told(one)) for one in logs[:BATCH_MOST]])
