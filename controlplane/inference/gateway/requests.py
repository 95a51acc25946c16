"""Bodies of OpenAI's operations: read, bounded, and held against what may be passed on to a server.

Only fields listed here go on. A server's own extensions can be dangerous (a sampling program that it would run) or
another tenant's business (ids of its requests), so what is not known is refused and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import jsonschema_rs
import msgspec

from controlplane.inference.gateway.refusals import GatewayRefused, wrong_field
from controlplane.tools.schema_cost import check_cost

MODELS_MOST = 8
MESSAGES_MOST = 4096
TOOLS_MOST = 256
CHOICES_MOST = 8
TOKENS_MOST = 10_000_000
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_PARTS = {"text": "text", "image_url": "image", "input_audio": "audio", "refusal": "text"}


class Operation(StrEnum):
    """What is asked of a model."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


PATHS: Mapping[Operation, str] = {
    Operation.CHAT: "/chat/completions",
    Operation.COMPLETION: "/completions",
    Operation.EMBEDDING: "/embeddings",
}
_SAMPLING = frozenset(
    {"frequency_penalty", "logit_bias", "logprobs", "max_tokens", "min_p", "n", "presence_penalty", "seed", "stop"}
    | {"temperature", "top_k", "top_p", "repetition_penalty", "min_tokens", "ignore_eos", "regex", "ebnf"}
    | {"stop_token_ids", "skip_special_tokens"}
)
_IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prediction"}
)
_FIELDS: Mapping[Operation, frozenset[str]] = {
    Operation.CHAT: _SAMPLING
    | {"messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls"}
    | {"response_format", "reasoning_effort", "verbosity", "chat_template_kwargs", "modalities", "audio"},
    Operation.COMPLETION: _SAMPLING | {"prompt", "echo", "best_of", "suffix", "response_format"},
    Operation.EMBEDDING: frozenset({"input", "dimensions", "encoding_format"}),
}


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """One request, checked. ``body`` is what a server gets, without ``model`` and ``stream``."""

    operation: Operation
    models: tuple[str, ...]
    body: Mapping[str, Any]
    is_stream: bool = False
    wants_usage: bool = False
    tools: tuple[str, ...] = ()
    max_tokens: int | None = None
    modalities: frozenset[str] = frozenset({"text"})
    schema: jsonschema_rs.Validator | None = field(default=None, compare=False)
    """What each answer's content was asked to satisfy, strictly."""

    def prompt(self) -> bytes:
        """What the server will see first, as bytes: tools, then the conversation."""
        seen = (self.body.get("tools"), self.body.get("messages", self.body.get("prompt", "")))
        return msgspec.json.encode(seen)


def read(operation: Operation, text: bytes) -> ModelRequest:
    """A request as it was sent. Raises: GatewayRefused invalid_request."""
    try:
        body = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else "not valid JSON"
        raise GatewayRefused("invalid_request", f"The body is {why}.", fix="Send one JSON object.") from None
    if not isinstance(body, dict):
        raise GatewayRefused("invalid_request", "The body is not a JSON object.", fix="Send one.")
    models = _models(body.pop("model", None), body.pop("models", None))
    is_stream = _flag(body, "stream") and operation is not Operation.EMBEDDING
    options = body.pop("stream_options", None)
    if options is not None and not isinstance(options, dict):
        raise wrong_field("stream_options", "it is not an object", 'Send {"include_usage": true}.')
    return checked(
        operation, models, body, is_stream=is_stream, wants_usage=bool(options and options.get("include_usage"))
    )


def checked(
    operation: Operation,
    models: tuple[str, ...],
    sent: Mapping[str, Any],
    *,
    is_stream: bool = False,
    wants_usage: bool = False,
) -> ModelRequest:
    """``sent`` held against what may go on. Raises: GatewayRefused invalid_request."""
    body = {key: value for key, value in sent.items() if value is not None and key not in _IGNORED}
    if unknown := sorted(body.keys() - _FIELDS[operation]):
        listed = ", ".join(sorted(_FIELDS[operation]))
        raise wrong_field(unknown[0], "this gateway does not pass it on", f"Leave it out. Passed on are: {listed}.")
    _number(body, "n", 1, CHOICES_MOST)
    for name in ("max_tokens", "max_completion_tokens", "min_tokens"):
        _number(body, name, 0 if name == "min_tokens" else 1, TOKENS_MOST)
    modalities = frozenset({"text"})
    tools: tuple[str, ...] = ()
    schema: jsonschema_rs.Validator | None = None
    if operation is Operation.CHAT:
        modalities = _messages(body.get("messages"))
        tools = _tools(body)
        schema = _schema(body.get("response_format"))
    elif operation is Operation.COMPLETION:
        _text(body.get("prompt"), "prompt")
    else:
        _text(body.get("input"), "input")
        modalities = frozenset({"embeddings"})
    return ModelRequest(
        operation=operation,
        models=models,
        body=body,
        is_stream=is_stream,
        wants_usage=wants_usage,
        tools=tools,
        max_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
        modalities=modalities,
        schema=schema,
    )


def _models(model: Any, others: Any) -> tuple[str, ...]:
    """``model`` may be a list with commas; ``models`` has more, for when it cannot serve."""
    if not isinstance(model, str) or not model.strip():
        raise wrong_field("model", "it is missing, or not a text", "Name a model that GET /v1/models lists.")
    if others is None:
        others = []
    if not isinstance(others, list) or not all(isinstance(one, str) for one in others):
        raise wrong_field("models", "it is not a list of names", 'Send ["another-model"], or leave it out.')
    names = tuple(dict.fromkeys(one.strip() for one in [*model.split(","), *others] if one.strip()))
    if not 1 <= len(names) <= MODELS_MOST:
        raise wrong_field("model", f"it names {len(names)} models", f"Name 1 to {MODELS_MOST}.")
    return names


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.pop(name, None)
    if value is not None and type(value) is not bool:
        raise wrong_field(name, "it is neither true nor false", "Send one of them.")
    return bool(value)


def _number(body: Mapping[str, Any], name: str, least: int, most: int) -> None:
    value = body.get(name)
    if value is not None and (type(value) is not int or not least <= value <= most):
        raise wrong_field(name, "it is not a whole number in range", f"Send {least} to {most}.")


def _messages(messages: Any) -> frozenset[str]:
    """The modalities that they need."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MESSAGES_MOST:
        raise wrong_field("messages", "it is not a list with messages", f"Send 1 to {MESSAGES_MOST} messages.")
    needed = {"text"}
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise wrong_field(where, "it is not an object", 'Send {"role": "user", "content": "…"}.')
        if message.get("role") not in _ROLES:
            raise wrong_field(f"{where}.role", "it is not a role", f"Send one of {', '.join(_ROLES)}.")
        content = message.get("content")
        if isinstance(content, list):
            needed |= {_part(part, f"{where}.content[{at}]") for at, part in enumerate(content)}
        elif content is not None and not isinstance(content, str):
            raise wrong_field(f"{where}.content", "it is neither text nor a list of parts", "Send one of them.")
    return frozenset(needed)


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in _PARTS:
        raise wrong_field(where, "it is not a part", f"Give it one of the types {', '.join(_PARTS)}.")
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else None
        # A server would fetch any other address itself, from inside.
        if not isinstance(url, str) or not url.startswith("data:image/"):
            raise wrong_field(f"{where}.image_url.url", "it is not a data: URL", "Send data:image/png;base64,….")
    return _PARTS[str(kind)]


def _text(value: Any, name: str) -> None:
    good = isinstance(value, str) or (
        isinstance(value, list)
        and 1 <= len(value) <= MESSAGES_MOST * 16
        and all(isinstance(one, str | int | list) and type(one) is not bool for one in value)
    )
    if not good or value == "":
        raise wrong_field(name, "it is neither a text nor a list of texts or tokens", "Send one of them.")


def _tools(body: Mapping[str, Any]) -> tuple[str, ...]:
    tools = body.get("tools", [])
    if not isinstance(tools, list) or len(tools) > TOOLS_MOST:
        raise wrong_field("tools", "it is not a list of tools", f"Send at most {TOOLS_MOST}.")
    names = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not 1 <= len(name) <= 128:
            form = 'Send {"type": "function", "function": {"name": "…", "parameters": {…}}}.'
            raise wrong_field(f"tools[{index}]", "it is not a function with a name", form)
        if name in names:
            raise wrong_field(f"tools[{index}].function.name", "another tool has this name", "Name each once.")
        names.append(name)
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        function = choice.get("function")
        wanted = function.get("name") if isinstance(function, dict) else None
        if wanted not in names:
            raise wrong_field("tool_choice", "it names no tool of `tools`", "Name one of them.")
    elif choice not in (None, "none", "auto", "required"):
        raise wrong_field("tool_choice", "it is no choice", "Send none, auto, required or a function.")
    if choice == "required" and not names:
        raise wrong_field("tool_choice", "it requires a tool, and there is none", "Give `tools`.")
    return tuple(names)


def _schema(wanted: Any) -> jsonschema_rs.Validator | None:
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return jsonschema_rs.validator_for({"type": "object"})
    described = wanted.get("json_schema") if kind == "json_schema" else None
    if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
        form = 'Send {"type": "json_schema", "json_schema": {"name": "…", "schema": {…}}}.'
        raise wrong_field("response_format", "it is not a format", form)
    try:
        # Nothing is fetched for a reference, and no pattern takes long.
        options = jsonschema_rs.RegexOptions()
        check_cost(described["schema"])
        validator = jsonschema_rs.validator_for(described["schema"], pattern_options=options, offline=True)
    except (ValueError, RecursionError, jsonschema_rs.ReferencingError) as error:
        shown = str(error)[:200]
        raise wrong_field(
            "response_format.json_schema.schema", f"it is not a JSON Schema ({shown})", "Mend it."
        ) from None
    return validator if described.get("strict") is True else None
