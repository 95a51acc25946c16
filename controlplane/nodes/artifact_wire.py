"""Bytes on the node wire: outputs that nodes send, inputs that they fetch."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from controlplane.errors import conflict, not_found
from controlplane.nodes.callers import answered, node_of, parts_of
from controlplane.nodes.control_characters import CONTROL
from controlplane.nodes.node import Node
from controlplane.runs import labels
from controlplane.runs.state import StepState
from dataplane.protocol import ArtifactRef


async def upload(request: Request) -> Response:
    """Bytes of one output; the reference belongs to the run of the attempt."""
    services, engine = parts_of(request)
    node = node_of(request, engine)
    query = request.query_params
    try:
        found = engine.controller.current(query.get("attempt", ""), int(query.get("fence", "0")))
    except ValueError:
        found = None
    if found is None or found[1].node != node.id:
        raise conflict("The fence is not current; drop this work.")
    run, step = found
    name = CONTROL.sub("_", query.get("name", "output")[:255]) or "output"
    media_type = query.get("media_type", "application/octet-stream")[:128]
    stored = await services.artifacts.put(
        run.tenant, name, media_type, request.stream(), run=run.id, path=step.path, labels=_labels(step)
    )
    fields = {field: stored[field] for field in ("id", "name", "digest", "size_bytes", "media_type")}
    return answered(ArtifactRef(**fields))


def _labels(step: StepState) -> dict[str, Any]:
    """What a file inherits that a step writes while it runs."""
    return labels.join(labels.of_step(step), step.labels)


async def download(request: Request) -> Response:
    """Bytes of an artifact that the attempt was granted as an input or asked for in an authorized call."""
    services, engine = parts_of(request)
    node = node_of(request, engine)
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
