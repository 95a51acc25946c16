"""The wire between a node and the control plane. JSON over HTTP, the node always calls.

    POST /node/v1/register   Register            -> Registered
    POST /node/v1/pull       PullRequest         -> PullResponse      (long poll; heartbeat and reports ride on it)
    POST /node/v1/authorize  [AuthorizeRequest]  -> [AuthorizeAnswer]
    POST /node/v1/results    [CallResult]        -> [Ack]
    POST /node/v1/flows      [FlowRecord]        -> [Ack]
    POST /node/v1/output     [OutputChunk]       -> [Ack]
    POST /node/v1/model-logs [ModelLog]          -> [Ack]
    GET  /node/v1/tunnel     a WebSocket that the node keeps: streams to it (dataplane.tunnel)
    PUT  /node/v1/artifacts?attempt=&fence=&name=&media_type=   bytes -> ArtifactRef
    GET  /node/v1/artifacts/{id}?attempt=&fence=                      -> bytes

Every message is a list whose elements are answered one by one, in order, each with its own fence. A node names only
attempt, fence and call: who is asking, for which run and with which data labels is filled in by the control plane.
Unknown fields are ignored on this wire, but a message whose ``requires`` names a feature the reader lacks is refused.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from dataplane.model_wire import DesiredModels, ModelReport

VERSION = 1
FEATURES: frozenset[str] = frozenset({"egress", "freeze", "mcp", "models", "scrub", "tool_gateway"})
"""What this version can be required to do."""
FAKE_GPU = "fake-gpu-"
"""How the id of a declared GPU begins: there is no device behind it, and no driver is asked for one."""


class Wire(msgspec.Struct, kw_only=True, omit_defaults=True):
    """All messages: keyword-only, defaults left out, unknown fields ignored."""


class Capacity(Wire):
    cpu_milli: int
    memory_bytes: int
    slots: int
    gpu: int = 0
    gpu_memory_bytes: int = 0


class ImageState(Wire):
    tier: str
    image: str
    ready: bool
    warm: int = 0
    detail: str = ""


class DataRoot(Wire):
    """One exported root: ``data://NAME/REL`` opens files beneath it only. ``digest`` is over (path, size, mtime)."""

    name: str
    size_bytes: int
    digest: str
    files: int


class GpuDevice(Wire):
    """One GPU, or one MIG slice of it. ``uuid`` is the driver's name of it; ``fake`` ones are declared for tests."""

    uuid: str
    index: int
    name: str
    memory_bytes: int
    memory_free_bytes: int
    fake: bool = False


class Register(Wire):
    """``identity`` is the node's stable name; a new ``boot_id`` under it ends its earlier attempts.

    ``proof`` is a secret that the node made with its name and keeps: who registers the name again must have it.
    """

    identity: str
    boot_id: str
    proof: str
    version: int
    features: list[str]
    capacity: Capacity
    tiers: dict[str, str]  # tier -> strength
    absent: dict[str, str] = {}  # tier -> why not
    images: list[ImageState] = []
    labels: dict[str, str] = {}
    data: list[DataRoot] = []
    gpus: list[GpuDevice] = []
    gpus_absent: str = ""  # why there are none
    address: str = ""  # https://HOST:PORT where the node listens itself; empty: reach it by its tunnel


class Registered(Wire):
    """``token`` is the short-lived bearer of this boot; it replaces the join token."""

    node: str
    token: str
    heartbeat_seconds: float
    lease_seconds: float
    hold_seconds: float
    requires: list[str] = []
    tenant: str = ""
    stream_key: str = ""
    """What the tokens of streams to this node are signed with, while this registration lasts."""
    now: float = 0.0
    """Seconds since 1970 by the control plane's clock, which those tokens' ends are of."""


class Heartbeat(Wire):
    """Rides on a pull. ``attempts`` are all the node holds (running or frozen) with their fences."""

    free: Capacity
    attempts: list[tuple[str, int]] = []
    images: list[ImageState] | None = None
    data: list[DataRoot] | None = None
    gpus: list[GpuDevice] | None = None
    cached_added: list[str] = []  # artifact digests
    cached_removed: list[str] = []
    draining: bool = False
    models: ModelReport | None = None


class SandboxRequest(Wire):
    tier: str
    image: str
    memory_bytes: int
    wall_seconds: float
    cpu_milli: int = 1000
    gpus: list[str] = []  # ids of the devices that are its own while it runs; ``FAKE_GPU`` ones exist nowhere


class InputGrant(Wire):
    """One input, mounted read-only at ``/inputs/<name>``: an artifact reference or a file of an exported root."""

    name: str
    artifact: str | None = None
    digest: str | None = None
    size_bytes: int | None = None
    data: str | None = None  # "NAME/REL"


class NetworkHost(Wire):
    """One host and port that code may reach through the node's forwarder, for as long as this attempt and the node's
    lease last. ``decision`` allowed it; ``private_allowed``: the platform's own data names it.
    """

    host: str
    port: int
    decision: str
    private_allowed: bool = False


class CodeWork(Wire):
    language: Literal["python", "shell"]
    source: str
    sandbox: SandboxRequest
    call: str | None = None
    args: list[Any] = []
    inputs: list[InputGrant] = []
    tools: list[str] = []
    network: list[NetworkHost] = []


class SecretLease(Wire):
    """A value for one outgoing request, in memory only. ``format`` has one ``{}`` for the value."""

    name: str
    header: str
    format: str
    value: str


class HttpCall(Wire):
    """A resolved, authorized HTTP request. ``private_allowed``: the platform's own data names this host."""

    method: str
    url: str
    headers: dict[str, str] = {}
    body: Any = None
    secrets: list[SecretLease] = []
    private_allowed: bool = False
    timeout_seconds: float = 30.0
    response_bytes_max: int = 4 * 1024 * 1024


class BuiltinCall(Wire):
    name: str  # noop, artifact.read, artifact.write
    args: dict[str, Any] = {}


class McpProcess(Wire):
    """How to start a stdio MCP server: ``command`` in a sandbox of its own, without network and without secrets.

    ``mounts``: the name below ``/inputs`` -> the data root of this node that is there as a folder, read-only.
    """

    tier: str
    image: str
    command: list[str]
    env: dict[str, str] = {}
    mounts: dict[str, str] = {}
    memory_bytes: int = 256 * 1024 * 1024


class McpEndpoint(Wire):
    """A Streamable HTTP MCP server. ``private_allowed``: the platform's own data names this host."""

    url: str
    headers: dict[str, str] = {}
    secrets: list[SecretLease] = []
    private_allowed: bool = False


class McpCall(Wire):
    """A call of one tool of an MCP server, or with no ``tool`` the listing of all; one of ``process`` and ``endpoint``.

    ``server_id`` names tenant and declaration: calls with the same one may share a process. ``reviewed`` is the tool's
    definition as it was accepted (``dataplane.tool_definitions``); a server that offers another is not called.
    """

    server: str
    server_id: str
    process: McpProcess | None = None
    endpoint: McpEndpoint | None = None
    tool: str = ""
    args: dict[str, Any] = {}
    reviewed: dict[str, Any] = {}
    timeout_seconds: float = 30.0


class Performance(Wire):
    """What the node must do for an authorized call; exactly one of ``http``, ``mcp`` and ``builtin`` is set."""

    key: str  # idempotency key, stable across attempts
    http: HttpCall | None = None
    mcp: McpCall | None = None
    builtin: BuiltinCall | None = None


class Assignment(Wire):
    """One attempt for this node. Exactly one of ``code`` and ``call`` is set."""

    attempt: str
    fence: int
    run: str
    path: str
    number: int  # attempt number, 1-based; counts dispatches
    wall_seconds: float
    code: CodeWork | None = None
    call: Performance | None = None
    requires: list[str] = []
    v: int = 1


class Directive(Wire):
    """``cancel`` an attempt (reason), ``drain`` the node, ``prepare`` an image, ``rejoin``: register again.

    ``models``: send a heartbeat, its answer has what is to be served; ``model_log``: send the log's end of a replica.
    """

    kind: Literal["cancel", "drain", "prepare", "rejoin", "models", "model_log"]
    attempt: str = ""
    fence: int = 0
    reason: str = ""
    tier: str = ""
    image: str = ""
    replica: str = ""


class ArtifactRef(Wire):
    """A reference, not a capability: ``id`` names it inside its tenant."""

    id: str
    name: str
    digest: str
    size_bytes: int
    media_type: str


class Report(Wire):
    """How an attempt ended. ``reason``: ``sandboxes.execution.ExitReason`` for code, ``tool`` for a call, ``input`` for
    code whose inputs are not there.

    ``platform_error`` set means the platform failed (``driver_failed``, ``fetch_failed``, ``lost``, ``frozen``):
    no attempt of the step's own retries is burnt.
    """

    attempt: str
    fence: int
    code: int = 0
    reason: str = "exited"
    message: str = ""
    has_result: bool = False
    result: Any = None
    schema_error: str | None = None
    artifacts: list[ArtifactRef] = []
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    stdout_tail: str = ""  # at most 4 KiB
    stderr_tail: str = ""
    output_truncated: bool = False
    error: dict[str, Any] | None = None  # a tool call's error {type, message, retryable}
    platform_error: str | None = None
    wall_seconds: float = 0.0
    start_seconds: float | None = None  # until the sandbox was there
    cached: list[str] = []  # digests of artifacts that stay on the node; heartbeats tell them too, but later
    memory_peak_bytes: int | None = None


class Ack(Wire):
    """The answer to one element. ``stale``: the fence is no longer current, drop the work.

    ``stored_bytes`` goes with the refusal of output that leaves a gap: go on from there.
    """

    ok: bool
    stale: bool = False
    message: str = ""
    stored_bytes: int | None = None


class PullRequest(Wire):
    """``lane`` "work" parks up to ``wait_seconds`` for assignments; "report" answers as soon as reports are durable."""

    node: str
    boot_id: str
    lane: Literal["work", "report"] = "work"
    max: int = 0
    wait_seconds: float = 0.0
    heartbeat: Heartbeat | None = None
    reports: list[Report] = []


class PullResponse(Wire):
    assignments: list[Assignment] = []
    directives: list[Directive] = []
    acks: list[Ack] = []  # one for each report, same order
    models: DesiredModels | None = None


class AuthorizeRequest(Wire):
    """``call`` is the node's own number of the call within the attempt, for matching the answer."""

    attempt: str
    fence: int
    call: int
    tool: str
    args: dict[str, Any] = {}


class AuthorizeAnswer(Wire):
    """``allow`` with ``perform``; or ``recorded`` (answered from the journal: ``value``); or a refusal in ``error``.

    ``unavailable``: the policy cannot answer now; wait ``retry_seconds`` and ask again, nothing was decided.
    """

    call: int
    allow: bool = False
    perform: Performance | None = None
    recorded: bool = False
    value: Any = None
    error: dict[str, Any] | None = None
    stale: bool = False
    unavailable: bool = False
    retry_seconds: float = 0.0


class CallResult(Wire):
    """The outcome of one performed call; the guest sees it only after the ``Ack``."""

    attempt: str
    fence: int
    key: str
    ok: bool
    value: Any = None
    error: dict[str, Any] | None = None
    artifacts: list[ArtifactRef] = []


class OutputChunk(Wire):
    """Bytes of one stream at an offset; a repeated chunk is harmless. Also carries progress and, on ``data``, text."""

    attempt: str
    fence: int
    stream: Literal["stdout", "stderr", "progress"]
    offset: int
    data: bytes = b""
    fraction: float = 0.0
    text: str = ""
