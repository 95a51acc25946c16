"""The async client: one method per operation of the API. Close it, or use it as a context manager."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import anyio
import httpx2

from stockade import contexts
from stockade.client import calls, transport
from stockade.client.calls import Call, Definition, Page
from stockade.client.errors import ServerUnreachable
from stockade.client.models import (
    TERMINAL_EVENTS,
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
from stockade.client.sse import EventLines

T = TypeVar("T")
STREAM_READ_SECONDS = 45.0  # three heartbeats


def _key() -> str:
    return uuid.uuid4().hex


class AsyncClient:
    """Every method may raise ``StockadeError`` (refused) or ``ServerUnreachable``; ``timeout`` is per request, s.

    Server and key not given are found as the command line finds them: ``STOCKADE_URL`` and ``STOCKADE_API_KEY``, then
    the context that ``stockade up`` keeps. Raises ``ValueError`` for an address or key that cannot be one.
    """

    def __init__(self, url: str | None = None, *, api_key: str | None = None, timeout: float = 30.0) -> None:
        found = contexts.resolve(url, api_key)
        self.url = found.url
        self._http = httpx2.AsyncClient(**transport.options(found.url, found.api_key, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(
        self,
        workflow: Definition,
        input: Any = None,
        *,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Run:
        """Start a run; it is durable when this returns. The same ``idempotency_key`` gives the same run."""
        return await self._send(calls.submit(workflow, input, labels, idempotency_key or _key()))

    async def validate(self, workflow: Definition, input: Any = None) -> Validation:
        """What a submit would meet: faults, policy's answer, where each step would run. Starts nothing."""
        return await self._send(calls.validate(workflow, input))

    async def run(self, run_id: str) -> Run:
        """A run now."""
        return await self._send(calls.run(run_id))

    async def runs(
        self, *, status: str | None = None, workflow: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[Run]:
        """A page of runs, newest first."""
        return await self._send(calls.runs(status, workflow, limit, cursor))

    async def steps(self, run_id: str) -> list[Step]:
        """Every step of a run."""
        return await self._all(lambda cursor: calls.steps(run_id, cursor))

    async def step(self, run_id: str, path: str) -> Step:
        """One step by its path, such as ``scan[3]/probe``."""
        return await self._send(calls.step(run_id, path))

    async def logs(self, run_id: str, path: str, stream: str = "stdout") -> str:
        """All a step's current attempt wrote on ``stdout`` or ``stderr``."""
        return await self._send(calls.logs(run_id, path, stream))

    async def cancel(self, run_id: str, reason: str | None = None) -> Run:
        """Ask a run to end; it is ``cancelling`` until its steps are gone."""
        return await self._send(calls.cancel(run_id, reason, _key()))

    async def approve(self, run_id: str, path: str, comment: str | None = None) -> Step:
        """Say yes to an approval step. Needs a person's key with the scope ``approve``."""
        return await self._send(calls.decide(run_id, path, True, comment, _key()))

    async def reject(self, run_id: str, path: str, comment: str | None = None) -> Step:
        """Say no to an approval step. Needs a person's key with the scope ``approve``."""
        return await self._send(calls.decide(run_id, path, False, comment, _key()))

    async def nodes(self) -> list[Node]:
        """Every node, also lost ones."""
        return await self._all(calls.nodes)

    async def delete_node(self, name: str) -> None:
        """Forget a node, by name or id, that is lost or runs nothing. Needs the scope ``admin``."""
        return await self._send(calls.delete_node(name))

    async def join_token(self) -> JoinToken:
        """A fresh token with which one node can join."""
        return await self._send(calls.join_token(_key()))

    async def artifacts(self, run_id: str | None = None) -> list[Artifact]:
        """References to artifacts, of one run or all."""
        return await self._all(lambda cursor: calls.artifacts(run_id, cursor))

    async def artifact_content(self, artifact_id: str) -> bytes:
        """An artifact's bytes."""
        return await self._send(calls.artifact_content(artifact_id))

    async def upload(self, name: str, content: bytes, media_type: str = "application/octet-stream") -> Artifact:
        """Store bytes; the reference can be a step's input."""
        return await self._send(calls.upload(name, content, media_type, _key()))

    async def decisions(
        self, run_id: str | None = None, *, entry: str | None = None, allow: bool | None = None
    ) -> list[Decision]:
        """Policy's answers, of one run or all."""
        return await self._all(lambda cursor: calls.decisions(run_id, entry, allow, cursor))

    async def decision(self, decision_id: str) -> Decision:
        """One answer with its (masked) question."""
        return await self._send(calls.decision(decision_id))

    async def set_secret(self, name: str, value: str) -> None:
        """Store a secret's value; it can be replaced, never read."""
        return await self._send(calls.set_secret(name, value))

    async def secrets(self) -> list[Secret]:
        """Names of secrets."""
        return await self._all(calls.secrets)

    async def delete_secret(self, name: str) -> None:
        """Forget a secret."""
        return await self._send(calls.delete_secret(name))

    async def put_tool(self, name: str, spec: Mapping[str, Any]) -> Tool:
        """Register ``server.tool``, or replace it under a new digest."""
        return await self._send(calls.put_tool(name, spec))

    async def tools(self) -> list[Tool]:
        """Registered and built-in tools."""
        return await self._all(calls.tools)

    async def delete_tool(self, name: str) -> None:
        """Forget a tool."""
        return await self._send(calls.delete_tool(name))

    async def put_mcp_server(self, name: str, spec: Mapping[str, Any]) -> McpServer:
        """Declare an MCP server. Its tools count once a node has listed them and a person has reviewed them."""
        return await self._send(calls.put_mcp_server(name, spec))

    async def mcp_servers(self) -> list[McpServer]:
        """Declared MCP servers, with the tools they offer and the state of each."""
        return await self._all(calls.mcp_servers)

    async def mcp_server(self, name: str) -> McpServer:
        """One of them."""
        return await self._send(calls.mcp_server(name))

    async def review_mcp_server(self, name: str, tools: Sequence[Mapping[str, Any]]) -> McpServer:
        """Accept tools, each ``{"name", "digest", "effect", "critical_args"}``. For a person, scope ``tool``."""
        return await self._send(calls.review_mcp_server(name, tools, _key()))

    async def delete_mcp_server(self, name: str) -> None:
        """Forget an MCP server and its tools."""
        return await self._send(calls.delete_mcp_server(name))

    async def publish(self, definition: Mapping[str, Any]) -> Workflow:
        """Store a definition under its ``name@version``, which never changes."""
        return await self._send(calls.publish(definition, _key()))

    async def workflows(self) -> list[Workflow]:
        """Published definitions."""
        return await self._all(calls.workflows)

    async def put_model_deployment(self, name: str, spec: Mapping[str, Any]) -> ModelDeployment:
        """Say what is to serve a model; the nodes follow."""
        return await self._send(calls.put_model_deployment(name, spec))

    async def model_deployment(self, name: str) -> ModelDeployment:
        """One deployment: what is asked for and how far it is."""
        return await self._send(calls.model_deployment(name))

    async def model_deployments(self) -> list[ModelDeployment]:
        """All of them, by name."""
        return await self._all(calls.model_deployments)

    async def delete_model_deployment(self, name: str) -> None:
        """Forget it; its servers end when what they have is answered."""
        return await self._send(calls.delete_model_deployment(name))

    async def model_log(self, name: str, replica: str | None = None) -> ModelLog:
        """The last 64 KiB that a replica's server wrote; of the oldest replica unless one is named."""
        return await self._send(calls.model_log(name, replica))

    async def status(self) -> dict[str, Any]:
        """How the control plane is: version, open runs, ready nodes, policy."""
        return await self._send(calls.status())

    async def whoami(self) -> dict[str, Any]:
        """Whose key this is and what it may do."""
        return await self._send(calls.whoami())

    async def events(self, run_id: str, *, after: int = 0) -> AsyncIterator[Event]:
        """A run's events from ``after`` on, as they are committed, until it ends. Lost connections are resumed."""
        pauses = transport.pauses()
        while True:
            ended = False
            try:
                async for event in self._stream(run_id, after):
                    after, pauses = max(after, event.seq), transport.pauses()
                    ended = event.type in TERMINAL_EVENTS
                    yield event
            except httpx2.TransportError as error:
                pause = next(pauses, None)
                if pause is None:
                    raise ServerUnreachable(self.url, str(error) or type(error).__name__) from None
                await anyio.sleep(pause)
            if ended:
                return

    async def wait(self, run_id: str) -> Run:
        """Return the run when it has ended."""
        run = await self.run(run_id)
        if not run.ended:
            async for _ in self.events(run_id):
                pass
            run = await self.run(run_id)
        return run

    async def _stream(self, run_id: str, after: int) -> AsyncIterator[Event]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(after)} if after else {})}
        timeout = httpx2.Timeout(10.0, read=STREAM_READ_SECONDS)
        path = f"/v1/runs/{calls.part(run_id)}/events"
        async with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code >= 400:
                raise transport.problem(self.url, response.status_code, await response.aread())
            lines = EventLines()
            async for line in response.aiter_lines():
                event = lines.feed(line)
                if event is not None:
                    yield event

    async def _all(self, page: Callable[[str | None], Call[Page[T]]]) -> list[T]:
        found: list[T] = []
        cursor: str | None = None
        while True:
            part = await self._send(page(cursor))
            found.extend(part.data)
            cursor = part.next_cursor
            if cursor is None:
                return found

    async def _send(self, call: Call[T]) -> T:
        pauses = transport.pauses()
        while True:
            try:
                response = await self._http.request(**transport.request_arguments(call))
            except httpx2.TransportError as error:
                pause = next(pauses, None) if call.repeatable or isinstance(error, httpx2.ConnectError) else None
                if pause is None:
                    raise ServerUnreachable(self.url, str(error) or type(error).__name__) from None
            else:
                pause = next(pauses, None) if transport.worth_repeating(call, response) else None
                if pause is None:
                    return transport.answer(call, self.url, response.status_code, response.content)
            await anyio.sleep(pause)
