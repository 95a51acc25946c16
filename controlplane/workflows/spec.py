"""What users write, as pydantic models; the published JSON Schema is generated from these.

    Workflow ─ defaults, input, output, steps ─> Step ─ exactly one verb, modifiers ─ do / else ─> Step …

The models hold what one field at a time can decide. What needs two steps to see (ids, needs, names in
expressions, gates) is decided in ``graph``. Unknown members are refused everywhere.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from controlplane.workflows.quantities import DURATION_PATTERN, SIZE_PATTERN, parse_duration, parse_size

MAX_CPU = 1024.0
ID_PATTERN = r"^[a-z][a-z0-9_]*$"
TOOL_PATTERN = r"^[a-z][a-z0-9_-]*(\.[A-Za-z][A-Za-z0-9_-]*)+$"
TOOL_GRANT_PATTERN = r"^[a-z][a-z0-9_-]*(\.[A-Za-z][A-Za-z0-9_-]*)*\.([A-Za-z][A-Za-z0-9_-]*|\*)$"
MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$"
INPUT_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_HOST_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
HOST_PATTERN = rf"^{_HOST_LABEL}(\.{_HOST_LABEL})*$"
FUNCTION_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"


class Verb(StrEnum):
    """What a step does; the member's value is the key in the document."""

    CODE = "code"
    TOOL = "tool"
    LLM = "llm"
    AGENT = "agent"
    SET = "set"
    IF = "if"
    MAP = "map"
    PARALLEL = "parallel"
    APPROVE = "approve"
    WAIT = "wait"


WORK = frozenset({Verb.CODE, Verb.TOOL, Verb.LLM})
"""Verbs that somebody performs, a node or a model server; the others only decide what happens next."""

ErrorType = Literal[
    "timeout", "sandbox_oom", "sandbox_exit", "schema", "rate_limited", "tool", "model", "node_lost",
    "policy_unavailable",
]  # fmt: skip

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN, max_length=64)]
ToolName = Annotated[str, StringConstraints(pattern=TOOL_PATTERN, max_length=128)]
ToolGrant = Annotated[str, StringConstraints(pattern=TOOL_GRANT_PATTERN, max_length=128)]
SecretName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]*$", max_length=64)]
InputName = Annotated[str, StringConstraints(pattern=INPUT_NAME_PATTERN, max_length=64)]
ModelName = Annotated[str, StringConstraints(pattern=MODEL_PATTERN, max_length=128)]
ModelNames = ModelName | Annotated[list[ModelName], Field(min_length=1, max_length=8)]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=64)]
HostName = Annotated[str, StringConstraints(pattern=HOST_PATTERN, max_length=253)]
Port = Annotated[int, Field(ge=1, le=65535)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]

DURATION_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string", "pattern": DURATION_PATTERN}, {"type": "number", "minimum": 0}],
    "description": "A duration such as '500ms', '30s', '5m', '1h', '1d', or a number of seconds.",
}
_SIZE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string", "pattern": SIZE_PATTERN}, {"type": "integer", "minimum": 0}],
    "description": "A size such as '512Mi', '2Gi', or a number of bytes.",
}


def _positive_duration(value: object) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError("must be longer than zero")
    return seconds


def _positive_size(value: object) -> int:
    size = parse_size(value)
    if size <= 0:
        raise ValueError("must be more than zero")
    return size


def _backoff(value: object) -> tuple[float, float]:
    if isinstance(value, str) and ".." in value:
        low, _, high = value.partition("..")
        bounds = (parse_duration(low), parse_duration(high))
        if bounds[0] > bounds[1]:
            raise ValueError("the first duration of a backoff range must not be longer than the second")
        return bounds
    seconds = parse_duration(value)
    return (seconds, seconds)


def _wait(value: object) -> object:
    return {"duration": value} if isinstance(value, str | int | float) and not isinstance(value, bool) else value


_NETWORK_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"const": "none"},
        {
            "type": "array",
            "maxItems": 32,
            "items": {
                "type": "object",
                "required": ["host"],
                "additionalProperties": False,
                "properties": {
                    "host": {"type": "string", "pattern": HOST_PATTERN, "maxLength": 253},
                    "ports": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 16,
                        "items": {"type": "integer", "minimum": 1, "maximum": 65535},
                        "default": [443],
                    },
                },
            },
        },
    ],
    "description": "'none', or the hosts that the code may reach through the node's forwarder.",
}
IMAGE_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}(@sha256:[0-9a-f]{64})?$"
Duration = Annotated[float, BeforeValidator(_positive_duration), WithJsonSchema(DURATION_SCHEMA)]
Size = Annotated[int, BeforeValidator(_positive_size), WithJsonSchema(_SIZE_SCHEMA)]
Backoff = Annotated[
    tuple[float, float],
    BeforeValidator(_backoff),
    WithJsonSchema(
        {"type": "string", "description": "One duration, or a range '1s..30s' doubled from the first to the second."}
    ),
]


class Model(BaseModel):
    """Strict, closed and immutable: the shape of everything users send."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class RetrySpec(Model):
    """How often a failed step is tried again. Losing a node or the policy engine burns none of ``max``."""

    max: int = Field(default=3, ge=0, le=100, description="Tries after the first failure.")
    backoff: Backoff = (1.0, 30.0)
    on: list[ErrorType] | None = Field(default=None, description="Error types worth another try.")


class NetworkHost(Model):
    """A host that code may reach, at these ports: by https, or by plain http."""

    host: HostName
    ports: Annotated[list[Port], Field(min_length=1, max_length=16)] = Field(default_factory=lambda: [443])


def _network(value: object) -> object:
    return [] if value == "none" else value


class SandboxSettings(Model):
    """The walls around generated code."""

    tier: Literal["auto", "wasm", "jail", "container"] | None = None
    image: Annotated[str, StringConstraints(pattern=IMAGE_PATTERN)] | None = Field(
        default=None, description="What is inside: a name its tier has; of a container also NAME@sha256:… to insist."
    )
    memory: Size | None = None
    wall: Duration | None = None
    network: (
        Annotated[list[NetworkHost], BeforeValidator(_network), Field(max_length=32), WithJsonSchema(_NETWORK_SCHEMA)]
        | None
    ) = None


class ResourceSettings(Model):
    """What the scheduler reserves on a node."""

    cpu: float | None = Field(default=None, ge=0, le=MAX_CPU)
    memory: Size | None = None
    gpu: int | None = Field(default=None, ge=0, le=64)
    gpu_memory: Size | None = None
    labels: dict[Label, Annotated[str, StringConstraints(max_length=128)]] | None = Field(default=None, max_length=32)


class Code(Model):
    """Source text that runs in a sandbox. Exactly one language."""

    python: str | None = None
    shell: str | None = None
    call: Annotated[str, StringConstraints(pattern=FUNCTION_PATTERN, max_length=128)] | None = Field(
        default=None, description="A function in the Python source, called with `args`; its return is the result."
    )
    args: list[Any] | None = Field(default=None, max_length=256)
    inputs: dict[InputName, Text] | None = Field(
        default=None, max_length=256, description="Each address is mounted read-only at /inputs/NAME."
    )
    tools: list[ToolGrant] | None = Field(default=None, max_length=64, description="What the code may call.")


class TextPart(Model):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageAddress(Model):
    """The image itself, as a data: URL: a model server is sent nowhere."""

    url: Annotated[str, StringConstraints(pattern=r"^(data:image/[a-z0-9.+-]{1,32};base64,|[^:/]*\$\{)")]


class ImagePart(Model):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageAddress


class AudioData(Model):
    """Sound, base64."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(Model):
    """Sound of a message."""

    type: Literal["input_audio"]
    input_audio: AudioData


class Message(Model):
    """One message of a conversation, as OpenAI's chat completions have them."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]]


class Sampling(Model):
    """How a model is asked; what is not given is the server's own."""

    model: ModelNames | None = Field(default=None, description="A deployment or alias; of a list the first that serves")
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000, description="Of one answer.")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    output: dict[str, Any] | None = Field(default=None, description="JSON Schema of the answer; else it is text.")


class Llm(Sampling):
    """One answer of a model. Exactly one of a prompt and messages."""

    system: str | None = Field(default=None, description="What comes before the prompt.")
    prompt: str | None = None
    messages: str | Annotated[list[Message], Field(min_length=1, max_length=1000)] | None = Field(
        default=None, description="A conversation, or one whole ${…} that gives one."
    )
    stop: list[Text] | None = Field(default=None, max_length=4)


class AgentBudget(Model):
    """What an agent may use in all; its next turn is not begun beyond it."""

    tokens: int | None = Field(default=None, ge=1, description="Of prompts and answers together.")
    steps: int | None = Field(default=None, ge=1, description="Answers, tool calls and programs.")


class Agent(Sampling):
    """A model in a loop: it calls tools, or writes Python that does, until it answers."""

    instructions: str | None = Field(default=None, description="What it is told before the prompt.")
    prompt: str
    tools: list[ToolGrant] | None = Field(default=None, max_length=64, description="What it may call.")
    code: bool = Field(default=False, description="Code mode: it calls the tools from Python it writes, in a sandbox.")
    inputs: dict[InputName, Text] | None = Field(
        default=None, max_length=256, description="Of code mode: each address is mounted read-only at /inputs/NAME."
    )
    max_turns: int = Field(default=20, ge=1, le=1000)
    budget: AgentBudget | None = None


class Map(Model):
    """One instance of `do` per element of `over`, in order."""

    over: str | list[Any]
    as_: Id = Field(default="item", alias="as")
    concurrency: int = Field(default=32, ge=1, le=10_000)
    tolerate: float = Field(default=0.0, ge=0, le=1, description="Share of instances that may fail.")


class Parallel(Model):
    """All children start together. It has no settings."""


class Approve(Model):
    """A person's consent before the gated steps run."""

    ask: Text
    show: dict[str, Any] | None = None
    by: list[Text] = Field(default_factory=list, max_length=64)
    expires: Duration | None = None
    gates: list[Id] | None = Field(default=None, max_length=256)


class Wait(Model):
    """Time passing: exactly one of a duration and an instant."""

    duration: str | int | float | None = Field(default=None, description="A duration, or one whole ${…}.")
    until: str | None = Field(default=None, description="An RFC 3339 instant with offset, or one whole ${…}.")


class Step(Model):
    """One step: an id, exactly one verb, and modifiers."""

    id: Id
    code: Code | None = None
    tool: ToolName | None = None
    args: dict[str, Any] | None = Field(default=None, description="Arguments of `tool`.")
    llm: Llm | None = None
    agent: Agent | None = None
    set: Any = None
    if_: str | bool | None = Field(default=None, alias="if")
    do: list[Step] | None = Field(default=None, min_length=1, max_length=1000)
    else_: list[Step] | None = Field(default=None, alias="else", min_length=1, max_length=1000)
    map: Map | None = None
    parallel: Parallel | None = None
    approve: Approve | None = None
    wait: Annotated[Wait | None, BeforeValidator(_wait)] = None

    when: str | bool | None = None
    needs: list[Id] | None = Field(default=None, max_length=1000)
    retry: RetrySpec | None = None
    timeout: Duration | None = None
    on_error: Literal["fail", "continue"] = "fail"
    near: str | list[str] | None = None
    resources: ResourceSettings | None = None
    sandbox: SandboxSettings | None = None
    secrets: list[SecretName] | None = Field(default=None, max_length=32)
    key: Text | None = None


class Defaults(Model):
    """Modifiers every step that can have them starts from."""

    model: ModelNames | None = None
    sandbox: SandboxSettings | None = None
    retry: RetrySpec | None = None
    timeout: Duration | None = None
    resources: ResourceSettings | None = None


class Workflow(Model):
    """A whole workflow."""

    stockade: Literal["1"]
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=64)] = "0"
    description: Annotated[str, StringConstraints(max_length=4096)] | None = None
    input: dict[str, Any] | None = Field(default=None, description="JSON Schema of the run's input.")
    defaults: Defaults = Field(default_factory=Defaults)
    steps: list[Step] = Field(min_length=1, max_length=1000)
    output: Any = None
