"""What nodes call (``dataplane.protocol``): raw bodies, msgspec, no framework on the hot path.

A node is known by its bearer token. It speaks for attempts that are current under its own name, and for nothing else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from controlplane.engine import Engine
from controlplane.errors import conflict, invalid_request, not_found, too_large, unauthorized
from controlplane.errors import field_problem as problem
from controlplane.ids import new_id
from controlplane.nodes.node import GPUS_MOST, Node
from controlplane.runs import labels, reports
from controlplane.runs.state import StepState
from controlplane.services import Services
from controlplane.store import Write, upsert
from controlplane.tables import NodeRow
from controlplane.times import rfc3339
from controlplane.tokens import hash_token, make_token
from dataplane.model_wire import ModelLog
from dataplane.protocol import (
    FEATURES,
    VERSION,
    Ack,
    ArtifactRef,
    AuthorizeRequest,
    CallResult,
    Directive,
    FlowRecord,
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
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
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


def _parts(request: Request) -> tuple[Services, Engine]:
    services: Services = request.app.state.services
    assert services.engine is not None  # noqa: S101 - the wire is mounted only with an engine
    return services, services.engine


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise unauthorized("Nodes send their token as a bearer.")
    return token


def _node(request: Request, engine: Engine) -> Node:
    node = engine.inventory.by_token(hash_token(_bearer(request)))
    if node is None:
        raise unauthorized("This node is not registered (any more): register again with the join token.")
    return node


async def _body(request: Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:500]
        raise invalid_request([problem("", why, "send what dataplane.protocol says")]) from None


def _json(value: Any) -> Response:
    return Response(_encode(value), media_type="application/json")


async def register(request: Request) -> Response:
    """A node joins, or comes back after a restart: a new boot ends its earlier attempts at once."""
    services, engine = _parts(request)
    tenant = await services.identities.join_tenant(_bearer(request))
    if tenant is None:
        raise unauthorized("The join token is wrong or has expired: make one with `stockade node join-token`.")
    if int(request.headers.get("content-length") or REGISTER_MOST + 1) > REGISTER_MOST:
        raise too_large(REGISTER_MOST)
    message = await _body(request, Register)
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
    return _json(answer)


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
    _services, engine = _parts(request)
    node = _node(request, engine)
    message = await _body(request, PullRequest)
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
    return _json(response)


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
    _services, engine = _parts(request)
    node = _node(request, engine)
    requests = await _body(request, list[AuthorizeRequest])
    return _json(await engine.gateway.authorize(node.id, requests[:BATCH_MOST]))


async def results(request: Request) -> Response:
    """Outcomes of performed calls; durable when acknowledged."""
    _services, engine = _parts(request)
    node = _node(request, engine)
    outcomes = await _body(request, list[CallResult])
    return _json(await engine.gateway.record(node.id, outcomes[:BATCH_MOST]))


async def flows(request: Request) -> Response:
    """Connections of guests; durable when acknowledged."""
    _services, engine = _parts(request)
    node = _node(request, engine)
    records = await _body(request, list[FlowRecord])
    return _json(await engine.flows.record(node.id, records[:BATCH_MOST]))


async def output(request: Request) -> Response:
    """Output of guests, in chunks, and their progress."""
    services, engine = _parts(request)
    node = _node(request, engine)
    acks: list[Ack] = []
    for chunk in await _body(request, list[OutputChunk]):
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
    return _json(acks)


async def model_logs(request: Request) -> Response:
    """The ends of model servers' logs that were asked for."""
    _services, engine = _parts(request)
    node = _node(request, engine)
    logs = await _body(request, list[ModelLog])
    return _json([Ack(ok=node.models.told(one)) for one in logs[:BATCH_MOST]])


async def upload(request: Request) -> Response:
    """Bytes of one output; the reference belongs to the run of the attempt."""
    services, engine = _parts(request)
    node = _node(request, engine)
    query = request.query_params
    try:
        found = engine.controller.current(query.get("attempt", ""), int(query.get("fence", "0")))
    except ValueError:
        found = None
    if found is None or found[1].node != node.id:
        raise conflict("The fence is not current; drop this work.")
    run, step = found
    name = _CONTROL.sub("_", query.get("name", "output")[:255]) or "output"
    media_type = query.get("media_type", "application/octet-stream")[:128]
    stored = await services.artifacts.put(
        run.tenant, name, media_type, request.stream(), run=run.id, path=step.path, labels=_labels(step)
    )
    fields = {field: stored[field] for field in ("id", "name", "digest", "size_bytes", "media_type")}
    return _json(ArtifactRef(**fields))


def _labels(step: StepState) -> dict[str, Any]:
    """What a file inherits that a step writes while it runs."""
    return labels.join(labels.of_step(step), step.labels)


async def download(request: Request) -> Response:
    """Bytes of an artifact that the attempt was granted as an input or asked for in an authorized call."""
    services, engine = _parts(request)
    node = _node(request, engine)
    query = request.query_params
    attempt, artifact = query.get("attempt", ""), request.path_params["artifact"]
    reservation = node.reservations.get(attempt)
    found = engine.controller.attempts.get(attempt)
    if reservation is None or found is None or found[1].node != node.id:
        raise not_found("artifact", artifact)
    run, step = found
    code = reservation.assignment.code
    granted = code is not None and any(one.artifact == artifact for one in code.inputs)
    asked = any(
        call.tool == "builtin.artifact.read"
        and call.attempt == attempt
        and json.loads(call.args).get("artifact", "").removeprefix("artifact://") == artifact
        for call in step.calls.values()
    )
    opened = await services.artifacts.open(run.tenant, artifact) if granted or asked else None
    # An id that a guest made up opens nothing: a run reads its own artifacts and those that whoever started it named.
    if opened is None or (opened[0]["run"] != run.id and artifact not in run.named_artifacts):
        raise not_found("artifact", artifact)
    shown, stream = opened
    headers = {"x-stockade-digest": shown["digest"], "content-length": str(shown["size_bytes"])}
    return StreamingResponse(_measured(node, stream), media_type=shown["media_type"], headers=headers)


async def _measured(node: Node, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    began, size = time.monotonic(), 0
    async for piece in stream:
        size += len(piece)
        yield piece
    node.moved(size, time.monotonic() - began)
