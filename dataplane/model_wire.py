"""The part of the node wire that is about model servers.

Heartbeat.models     ModelReport     what runs, what could run, and the revision of the wishes it follows
PullResponse.models  DesiredModels   all that is to run there, when the report names another revision
POST /node/v1/model-logs  [ModelLog] -> [Ack]        the answer to the directive ``model_log``
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

NodeEngine = Literal["sglang", "llamacpp"]
ModelPhase = Literal["starting", "ready", "draining", "failed", "stopped"]
Argument = str | int | float | bool

SOURCE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,2}$"
"""A name beneath the node's models folder: no segment can be ``..``, and none is absolute."""
VALUE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.:,+-]{0,127}$"
"""Of a text argument: never another flag, never a path."""
LOG_TAIL_BYTES = 64 * 1024

MODEL_ARGUMENTS: Mapping[NodeEngine, frozenset[str]] = {
    "sglang": frozenset(
        {
            "attention-backend", "chunked-prefill-size", "context-length", "cuda-graph-max-bs", "disable-cuda-graph",
            "disable-overlap-schedule", "disable-radix-cache", "dtype", "grammar-backend", "kv-cache-dtype",
            "max-prefill-tokens", "max-running-requests", "max-total-tokens", "mem-fraction-static", "page-size",
            "quantization", "random-seed", "reasoning-parser", "sampling-backend", "schedule-conservativeness",
            "schedule-policy", "stream-interval", "tool-call-parser",
        }
    ),
    "llamacpp": frozenset(
        {
            "batch-size", "cache-reuse", "cache-type-k", "cache-type-v", "ctx-size", "flash-attn", "gpu-layers",
            "jinja", "mlock", "no-mmap", "parallel", "pooling", "reasoning-format", "seed", "threads",
            "threads-batch", "ubatch-size",
        }
    ),
}  # fmt: skip
"""What a deployment may set of its server, without the dashes. The rest is the node's own: addresses, keys, files,
names, and whatever runs code that came with a model."""


def argument_problem(engine: NodeEngine, name: str, value: Argument) -> str | None:
    """Why the server is not started with this; ``None`` if it may be."""
    if name not in MODEL_ARGUMENTS[engine]:
        return f"a deployment does not set {name!r} of {engine}"
    if isinstance(value, str) and not re.fullmatch(VALUE_PATTERN, value):
        return f"the value of {name!r} is not one word of letters, digits and _.:,+-"
    return None


class Wire(msgspec.Struct, kw_only=True, omit_defaults=True):
    """As all messages of the wire."""


class ModelReplica(Wire):
    """One server that the node is to run. ``spec`` is the digest of all that it is started with."""

    replica: str
    deployment: str
    spec: str
    engine: NodeEngine
    source: str
    served_name: str
    gpus: list[str] = []  # ids of the devices that are its own; without any it runs on the CPU
    args: dict[str, Argument] = {}
    context_tokens: int | None = None
    modalities: list[str] = []


class DesiredModels(Wire):
    """All of the node's servers: what is not among them is drained and ended."""

    revision: str
    replicas: list[ModelReplica] = []


class ModelState(Wire):
    """How one server is. ``spec`` is that of the ``ModelReplica`` it was started for.

    ``log_bytes`` counts what it has written since it was first started, ``restarts`` how often it was started again.
    """

    replica: str
    deployment: str
    spec: str
    state: ModelPhase
    detail: str = ""
    slots: int = 0
    running: int = 0
    waiting: int = 0
    token_usage: float | None = None
    restarts: int = 0
    log_bytes: int = 0


class EngineState(Wire):
    """An engine the node has, by ``version``; or why it has none."""

    name: NodeEngine
    version: str = ""
    absent: str = ""


class ModelFile(Wire):
    """A model beneath the models folder, and the engine that serves its kind."""

    name: str
    engine: NodeEngine
    size_bytes: int


class ModelReport(Wire):
    """``revision`` is of the ``DesiredModels`` the node follows; "" for what it wants to hear (again).

    ``engines`` and ``files`` are ``None`` while they are as they were told.
    """

    revision: str = ""
    states: list[ModelState] = []
    engines: list[EngineState] | None = None
    files: list[ModelFile] | None = None


class ModelLog(Wire):
    """The end of a server's log: ``data`` begins at byte ``offset`` of all it has written."""

    replica: str
    offset: int
    data: bytes
