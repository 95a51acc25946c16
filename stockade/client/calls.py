"""Every operation of the API once, as a value: what to send and how to read the answer. Both clients send these."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from stockade.client.models import (
    Answer,
    Artifact,
    Decision,
    Event,
    JoinToken,
    McpServer,
    ModelDeployment,
    ModelLog,
    Node,
    Run,
    Secret,
    Step,
    Tool,
    Validation,
    Workflow,
)

T = TypeVar("T")
M = TypeVar("M", bound=Answer)
Definition = Mapping[str, Any] | str
"""A workflow inline, or the ``name@version`` of a published one."""


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request. ``repeatable``: a lost connection may be answered by sending it again."""

    method: str
    path: str
    read: Callable[[bytes], T]
    query: Mapping[str, str | int] = field(default_factory=dict)
    content: bytes | None = None
    content_type: str = "application/json"
    idempotency_key: str | None = None

    @property
    def repeatable(self) -> bool:
        return self.method in ("GET", "PUT", "DELETE") or self.idempotency_key is not None


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """Part of a list; ``next_cursor`` asks for what follows."""

    data: list[T]
    next_cursor: str | None


def one(model: type[M]) -> Callable[[bytes], M]:
    """Reads one object."""
    return lambda body: model.model_validate_json(body)


def many(model: type[M]) -> Callable[[bytes], Page[M]]:
    """Reads a page of objects."""

    def read(body: bytes) -> Page[M]:
        value = json.loads(body)
        return Page(data=[model.model_validate(item) for item in value["data"]], next_cursor=value.get("next_cursor"))

    return read


def nothing(_: bytes) -> None:
    """Reads an answer without a body."""


def as_object(body: bytes) -> dict[str, Any]:
    """Reads any JSON object."""
    value = json.loads(body)
    if not isinstance(value, dict):
        raise TypeError("the server answered something other than an object")
    return value


def encoded(value: Any) -> bytes:
    """Strict JSON. ``ValueError`` for NaN and infinities."""
    return json.dumps(value, allow_nan=False).encode()


def part(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="@.")


def known(**values: str | int | bool | None) -> dict[str, str | int]:
    """The query members that were given."""
    given = {key: value for key, value in values.items() if value is not None}
    return {key: str(value).lower() if isinstance(value, bool) else value for key, value in given.items()}


def submit(workflow: Definition, input: Any, labels: Mapping[str, str] | None, key: str) -> Call[Run]:
    body = encoded({"workflow": workflow, "input": input, "labels": dict(labels or {})})
    return Call(method="POST", path="/v1/runs", content=body, read=one(Run), idempotency_key=key)


def validate(workflow: Definition, input: Any) -> Call[Validation]:
    body = encoded({"workflow": workflow, "input": input})
    return Call(method="POST", path="/v1/runs:validate", content=body, read=one(Validation), idempotency_key=None)


def run(run_id: str) -> Call[Run]:
    return Call(method="GET", path=f"/v1/runs/{part(run_id)}", read=one(Run))


def runs(status: str | None, workflow: str | None, limit: int, cursor: str | None) -> Call[Page[Run]]:
    query = known(status=status, workflow=workflow, limit=limit, cursor=cursor)
    return Call(method="GET", path="/v1/runs", query=query, read=many(Run))


def steps(run_id: str, cursor: str | None) -> Call[Page[Step]]:
    return Call(method="GET", path=f"/v1/runs/{part(run_id)}/steps", query=known(cursor=cursor), read=many(Step))


def step(run_id: str, path: str) -> Call[Step]:
    return Call(method="GET", path=f"/v1/runs/{part(run_id)}/steps/{part(path)}", read=one(Step))


def events(run_id: str, after: int, limit: int) -> Call[Page[Event]]:
    query = known(after=after, limit=limit)
    return Call(method="GET", path=f"/v1/runs/{part(run_id)}/events", query=query, read=many(Event))


def logs(run_id: str, path: str, stream: str) -> Call[str]:
    query = known(path=path, stream=stream)
    return Call(
        method="GET", path=f"/v1/runs/{part(run_id)}/logs", query=query, read=lambda body: body.decode(errors="replace")
    )


def cancel(run_id: str, reason: str | None, key: str) -> Call[Run]:
    body = encoded({"reason": reason} if reason else {})
    return Call(method="POST", path=f"/v1/runs/{part(run_id)}:cancel", content=body, read=one(Run), idempotency_key=key)


def decide(run_id: str, path: str, approve: bool, comment: str | None, key: str) -> Call[Step]:
    target = f"/v1/runs/{part(run_id)}/steps/{part(path)}:{'approve' if approve else 'reject'}"
    body = encoded({"comment": comment} if comment else {})
    return Call(method="POST", path=target, content=body, read=one(Step), idempotency_key=key)


def nodes(cursor: str | None) -> Call[Page[Node]]:
    return Call(method="GET", path="/v1/nodes", query=known(cursor=cursor), read=many(Node))


def delete_node(name: str) -> Call[None]:
    return Call(method="DELETE", path=f"/v1/nodes/{part(name)}", read=nothing)


def join_token(key: str) -> Call[JoinToken]:
    return Call(method="POST", path="/v1/nodes/join-tokens", content=b"{}", read=one(JoinToken), idempotency_key=key)


def artifacts(run_id: str | None, cursor: str | None) -> Call[Page[Artifact]]:
    return Call(method="GET", path="/v1/artifacts", query=known(run=run_id, cursor=cursor), read=many(Artifact))


def artifact_content(artifact_id: str) -> Call[bytes]:
    return Call(method="GET", path=f"/v1/artifacts/{part(artifact_id)}/content", read=bytes)


def upload(name: str, content: bytes, media_type: str, key: str) -> Call[Artifact]:
    query = known(name=name, media_type=media_type)
    return Call(
        method="POST", path="/v1/artifacts", query=query, content=content, content_type=media_type,
        read=one(Artifact), idempotency_key=key,
    )  # fmt: skip


def decisions(run_id: str | None, entry: str | None, allow: bool | None, cursor: str | None) -> Call[Page[Decision]]:
    query = known(run=run_id, entry=entry, allow=allow, cursor=cursor)
    return Call(method="GET", path="/v1/decisions", query=query, read=many(Decision))


def decision(decision_id: str) -> Call[Decision]:
    return Call(method="GET", path=f"/v1/decisions/{part(decision_id)}", read=one(Decision))


def set_secret(name: str, value: str) -> Call[None]:
    return Call(method="PUT", path=f"/v1/secrets/{part(name)}", content=encoded({"value": value}), read=nothing)


def secrets(cursor: str | None) -> Call[Page[Secret]]:
    return Call(method="GET", path="/v1/secrets", query=known(cursor=cursor), read=many(Secret))


def delete_secret(name: str) -> Call[None]:
    return Call(method="DELETE", path=f"/v1/secrets/{part(name)}", read=nothing)


def put_tool(name: str, spec: Mapping[str, Any]) -> Call[Tool]:
    return Call(method="PUT", path=f"/v1/tools/{part(name)}", content=encoded(dict(spec)), read=one(Tool))


def tools(cursor: str | None) -> Call[Page[Tool]]:
    return Call(method="GET", path="/v1/tools", query=known(cursor=cursor), read=many(Tool))


def delete_tool(name: str) -> Call[None]:
    return Call(method="DELETE", path=f"/v1/tools/{part(name)}", read=nothing)


def put_mcp_server(name: str, spec: Mapping[str, Any]) -> Call[McpServer]:
    return Call(method="PUT", path=f"/v1/mcp-servers/{part(name)}", content=encoded(dict(spec)), read=one(McpServer))


def mcp_servers(cursor: str | None) -> Call[Page[McpServer]]:
    return Call(method="GET", path="/v1/mcp-servers", query=known(cursor=cursor), read=many(McpServer))


def mcp_server(name: str) -> Call[McpServer]:
    return Call(method="GET", path=f"/v1/mcp-servers/{part(name)}", read=one(McpServer))


def review_mcp_server(name: str, tools: Sequence[Mapping[str, Any]], key: str) -> Call[McpServer]:
    body = encoded({"tools": [dict(tool) for tool in tools]})
    path = f"/v1/mcp-servers/{part(name)}:review"
    return Call(method="POST", path=path, content=body, read=one(McpServer), idempotency_key=key)


def delete_mcp_server(name: str) -> Call[None]:
    return Call(method="DELETE", path=f"/v1/mcp-servers/{part(name)}", read=nothing)


def publish(definition: Mapping[str, Any], key: str) -> Call[Workflow]:
    body = encoded({"definition": dict(definition)})
    return Call(method="POST", path="/v1/workflows", content=body, read=one(Workflow), idempotency_key=key)


def workflows(cursor: str | None) -> Call[Page[Workflow]]:
    return Call(method="GET", path="/v1/workflows", query=known(cursor=cursor), read=many(Workflow))


def put_model_deployment(name: str, spec: Mapping[str, Any]) -> Call[ModelDeployment]:
    path = f"/v1/model-deployments/{part(name)}"
    return Call(method="PUT", path=path, content=encoded(dict(spec)), read=one(ModelDeployment))


def model_deployment(name: str) -> Call[ModelDeployment]:
    return Call(method="GET", path=f"/v1/model-deployments/{part(name)}", read=one(ModelDeployment))


def model_deployments(cursor: str | None) -> Call[Page[ModelDeployment]]:
    query = known(cursor=cursor)
    return Call(method="GET", path="/v1/model-deployments", query=query, read=many(ModelDeployment))


def delete_model_deployment(name: str) -> Call[None]:
    return Call(method="DELETE", path=f"/v1/model-deployments/{part(name)}", read=nothing)


def model_log(name: str, replica: str | None) -> Call[ModelLog]:
    path = f"/v1/model-deployments/{part(name)}/logs"
    return Call(method="GET", path=path, query=known(replica=replica), read=one(ModelLog))


def status() -> Call[dict[str, Any]]:
    return Call(method="GET", path="/v1/status", read=as_object)


def whoami() -> Call[dict[str, Any]]:
    return Call(method="GET", path="/v1/whoami", read=as_object)
