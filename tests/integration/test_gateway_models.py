"""The port ``Models`` as verbs use it: real policy, a real llama.cpp server, replicas that the test gives."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from aiohttp import web
from sqlmodel import select

from controlplane.authorization.bundle import load_bundle
from controlplane.authorization.embedded import EmbeddedEngine
from controlplane.authorization.enforcement import Enforcer
from controlplane.authorization.engine import PolicyEngine
from controlplane.authorization.testing import StaticEngine
from controlplane.authorization.values import EntryPoint, PolicyUnavailable
from controlplane.config import Settings
from controlplane.inference.gateway.assembly import LocalGateway, local_gateway
from controlplane.inference.gateway.authority import Admission
from controlplane.inference.gateway.metering import Meter
from controlplane.inference.gateway.questions import IMPLEMENTED
from controlplane.inference.gateway.requests import Operation, read
from controlplane.inference.testing import FixedReplicas
from controlplane.inference.values import ModelCall, ModelFailed, Replica
from controlplane.nodes.dialing import NodeUnreachable
from controlplane.services import Services, open_services
from controlplane.tables import ModelUsageRow
from dataplane.serving.tokens import Target
from tests.acceptance.cluster import free_port, wait_for
from tests.llama_server import LlamaServer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    with LlamaServer(tmp_path_factory.mktemp("llama")) as server:
        yield server


def served(name: str, url: str, deployment: str = "small", **more: Any) -> Replica:
    given: dict[str, Any] = {"kind": "external", "served_name": "m", "ready": True, "slots": 4}
    return Replica(id=name, tenant="default", deployment=deployment, url=url, **(given | more))


def nowhere(name: str, deployment: str = "small", **more: Any) -> Replica:
    return served(name, f"http://127.0.0.1:{free_port()}/v1", deployment, **more)


@asynccontextmanager
async def answering(chat: Callable[[web.Request], web.Response]) -> AsyncIterator[str]:
    """The URL of a server whose every answer is ``chat``'s."""

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return chat(request)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()


class NoNodes:
    """``NodeDialer`` where no replica is on a node."""

    async def post(self, node: str, target: Target, path: str, body: bytes, *, idle_seconds: float) -> Any:
        raise NodeUnreachable("there are no nodes")


class Stage:
    """The gateway with real parts of the control plane around it."""

    def __init__(self, services: Services, replicas: FixedReplicas, gateway: LocalGateway) -> None:
        self.services = services
        self.replicas = replicas
        self.gateway = gateway
        self.models = gateway.models

    async def usage(self) -> list[tuple[str, str, int, int]]:
        await self.services.journal.write([])
        rows = await self.services.store.read(lambda session: session.exec(select(ModelUsageRow)).all())
        return [(row.run, row.model, row.calls, row.failed) for row in rows]


async def stage(
    folder: Path, replicas: dict[str, list[Replica]], stack: AsyncExitStack, *, tables: dict[str, Any] | None = None,
    engine: PolicyEngine | None = None,
) -> Stage:  # fmt: skip
    services = await stack.enter_async_context(open_services(Settings(state_dir=folder / "state")))
    overlay = folder / "policy"
    overlay.mkdir()
    default = {"egress": {"127.0.0.1": True}, **(tables or {})}
    (overlay / "data.json").write_text(json.dumps({"tenants": {"default": default}}))
    engine = engine or EmbeddedEngine(load_bundle([overlay]))
    await engine.start()
    stack.push_async_callback(engine.close)
    ports = {
        f"127.0.0.1:{one.url.split(':')[2].split('/')[0]}" for all_ in replicas.values() for one in all_ if one.url
    }
    known = FixedReplicas(known=dict(replicas), aliases={"gpt": "small"})
    gateway = local_gateway(
        identities=services.identities,
        enforcer=Enforcer(engine, {EntryPoint.MODEL: IMPLEMENTED}),
        replicas=known,
        journal=services.journal,
        broker=services.broker,
        meter=Meter(services.store, services.journal),
        dialer=NoNodes(),
        token_hash="",
        private_hosts=frozenset(ports),
        deadline_seconds=60,
        body_bytes_most=1 << 20,
    )
    stack.push_async_callback(gateway.close)
    return Stage(services, known, gateway)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def call(*models: str, key: str = "k", **body: Any) -> ModelCall:
    said = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4, **body}
    return ModelCall(
        tenant="default", principal="key_1", models=models or ("small",), body=said, key=key, run="run_1", path="s",
        labels={"integrity": "user"},
        asker={
            "subject": {"id": "key_1", "kind": "person", "scopes": ["run"]},
            "workflow": {"name": "w", "version": "1", "digest": "d"}, "run": "run_1", "step": "s",
        },
    )  # fmt: skip


async def test_an_allowed_call_is_answered_and_counted_for_its_run(
    tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack
) -> None:
    on = await stage(tmp_path, {"small": [served("a", llama.url)]}, stack)
    decision = await on.models.decide(call("gpt"))
    assert decision.allow
    assert decision.input["run"] == "run_1"
    answer = await on.models.complete(call("gpt"))
    assert (answer.model, answer.replica, answer.message["role"]) == ("small", "a", "assistant")
    assert answer.message["content"]
    assert answer.prompt_tokens > 0
    assert 0 < answer.completion_tokens <= 4
    assert await on.usage() == [("run_1", "small", 1, 0)]


async def test_a_denied_call_is_not_performed_even_if_asked(tmp_path: Path, stack: AsyncExitStack) -> None:
    on = await stage(tmp_path, {"small": [nowhere("a")]}, stack, tables={"models": {"*": False}})
    decision = await on.models.decide(call())
    assert [one.code for one in decision.reasons] == ["model_not_allowed"]
    with pytest.raises(ModelFailed) as failed:
        await on.models.complete(call())
    assert (failed.value.type, failed.value.retryable) == ("policy_denied", False)


async def test_a_call_that_was_never_decided_is_decided_first(
    tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack
) -> None:
    on = await stage(tmp_path, {"small": [served("a", llama.url)]}, stack)
    assert (await on.models.complete(call(key="after a restart"))).message["content"]


async def test_an_unknown_name_says_what_there_is(tmp_path: Path, stack: AsyncExitStack) -> None:
    on = await stage(tmp_path, {"small": [nowhere("a")]}, stack)
    with pytest.raises(ModelFailed, match="There are: small") as failed:
        await on.models.decide(call("nope"))
    assert failed.value.type == "not_found"


async def test_a_body_no_model_takes_is_a_schema_error(tmp_path: Path, stack: AsyncExitStack) -> None:
    on = await stage(tmp_path, {"small": [nowhere("a")]}, stack)
    with pytest.raises(ModelFailed, match="messages") as failed:
        await on.models.decide(call(messages=[]))
    assert failed.value.type == "schema"


async def test_policy_that_does_not_answer_is_told_apart(tmp_path: Path, stack: AsyncExitStack) -> None:
    engine = StaticEngine()
    on = await stage(tmp_path, {"small": [nowhere("a")]}, stack, engine=engine)
    engine.is_down = True
    with pytest.raises(PolicyUnavailable):
        await on.models.decide(call())
    with pytest.raises(ModelFailed) as failed:
        await on.models.complete(call())
    assert failed.value.retryable


async def test_a_dead_replica_is_passed_over(tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack) -> None:
    on = await stage(tmp_path, {"small": [nowhere("a"), served("b", llama.url)]}, stack)
    answers = [await on.models.complete(call(key=str(number))) for number in range(3)]
    assert {one.replica for one in answers} == {"b"}


async def test_a_replica_that_answers_something_else_is_passed_over(
    tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack
) -> None:
    async with answering(lambda request: web.json_response({"data": []})) as url:
        on = await stage(tmp_path, {"small": [served("a", url), served("b", llama.url)]}, stack)
        answers = [await on.models.complete(call(key=str(number))) for number in range(3)]
    assert {one.replica for one in answers} == {"b"}


async def test_the_next_model_answers_when_the_first_cannot(
    tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack
) -> None:
    big = [nowhere("a", "big"), nowhere("c", "big", ready=False)]
    on = await stage(tmp_path, {"big": big, "small": [served("b", llama.url)]}, stack)
    assert (await on.models.complete(call("big", "small"))).model == "small"


async def test_nobody_ready_is_retryable_and_says_so(tmp_path: Path, stack: AsyncExitStack) -> None:
    on = await stage(tmp_path, {"small": [nowhere("a", ready=False)]}, stack)
    with pytest.raises(ModelFailed, match="no replica that is ready") as failed:
        await on.models.complete(call())
    assert (failed.value.type, failed.value.retryable) == ("model", True)


async def test_policys_cap_on_tokens_is_kept(tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack) -> None:
    on = await stage(tmp_path, {"small": [served("a", llama.url)]}, stack, tables={"caps": {"max_tokens": 2}})
    answer = await on.models.complete(call(max_tokens=50))
    assert (answer.completion_tokens, answer.finish_reason) == (2, "length")


async def test_policys_downgrade_is_asked_about_and_called(
    tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack
) -> None:
    replicas = {"big": [nowhere("a", "big")], "small": [served("b", llama.url)]}
    on = await stage(tmp_path, replicas, stack, tables={"downgrade": {"big": "small"}})
    decision = await on.models.decide(call("big"))
    assert [one["name"] for one in decision.input["models"]] == ["small"]
    assert (await on.models.complete(call("big"))).model == "small"


async def test_more_calls_than_places_wait_their_turn(
    tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack
) -> None:
    on = await stage(tmp_path, {"small": [served("a", llama.url, slots=1)]}, stack)
    answers: list[str] = []

    async def one(number: int) -> None:
        answers.append((await on.models.complete(call(key=str(number)))).replica)

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(one, number)
    assert answers == ["a"] * 8


async def test_a_call_does_not_outlast_its_deadline(tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack) -> None:
    on = await stage(tmp_path, {"small": [served("a", llama.url)]}, stack)
    slow = replace(call(max_tokens=1000, ignore_eos=True), deadline_seconds=0.3)
    with pytest.raises(ModelFailed) as failed:
        await on.models.complete(slow)
    assert failed.value.type == "timeout"
    assert on.gateway.routes.performer.router.outstanding("a") == 0


async def test_a_private_address_is_not_reached_unless_it_is_listed(tmp_path: Path, stack: AsyncExitStack) -> None:
    on = await stage(tmp_path, {"small": [nowhere("a")]}, stack)
    on.replicas.known["small"] = [served("b", "http://127.0.0.1:9/v1")]
    with pytest.raises(ModelFailed, match="may not be reached"):
        await on.models.complete(call())


async def test_a_missing_secret_is_named_and_its_value_is_never(
    tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack
) -> None:
    on = await stage(tmp_path, {"small": [served("a", llama.url, secret="models-key")]}, stack)
    with pytest.raises(ModelFailed, match="no secret 'models-key'"):
        await on.models.complete(call())
    await on.services.secrets.put("default", "models-key", "canary\nX: y")
    with pytest.raises(ModelFailed, match="cannot be sent") as failed:
        await on.models.complete(call())
    assert "canary" not in str(failed.value)
    await on.services.secrets.put("default", "models-key", "canary")
    assert (await on.models.complete(call())).replica == "a"


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_a_server_that_sends_its_key_back_tells_nobody(
    tmp_path: Path, stack: AsyncExitStack, status: int
) -> None:
    def echo(request: web.Request) -> web.Response:
        said = f"{'x' * 480} {request.headers['Authorization']}"
        message = {"role": "assistant", "content": said}
        answer = {"choices": [{"message": message}]} if status == 200 else {"error": {"message": said}}
        return web.json_response(answer, status=status)

    url = await stack.enter_async_context(answering(echo))
    on = await stage(tmp_path, {"small": [served("a", url, secret="models-key")]}, stack)
    await on.services.secrets.put("default", "models-key", "canary-canary")
    if status == 200:
        said = str((await on.models.complete(call())).message)
    else:
        with pytest.raises(ModelFailed) as failed:
            await on.models.complete(call())
        said = str(failed.value)
    assert "Bearer ***" in said
    assert "canary" not in said


async def test_an_answer_put_together_of_a_stream_is_the_same(
    tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack
) -> None:
    replicas = {"whole": [served("a", llama.url, "whole")], "small": [served("b", llama.url, kind="llamacpp")]}
    on = await stage(tmp_path, replicas, stack)
    fixed = {"temperature": 0, "seed": 1, "max_tokens": 12}
    whole, gathered = [await on.models.complete(call(name, key=name, **fixed)) for name in ("whole", "small")]
    assert gathered.message["content"] == whole.message["content"]
    assert (gathered.finish_reason, gathered.completion_tokens) == (whole.finish_reason, whole.completion_tokens)
    assert gathered.prompt_tokens == whole.prompt_tokens


async def test_a_call_nobody_waits_for_ends_at_the_server(
    tmp_path: Path, llama: LlamaServer, stack: AsyncExitStack
) -> None:
    on = await stage(tmp_path, {"small": [served("a", llama.url, kind="llamacpp")]}, stack)
    with pytest.raises(ModelFailed):
        await on.models.complete(replace(call(max_tokens=1500, ignore_eos=True), deadline_seconds=1.0))
    await anyio.to_thread.run_sync(wait_for, lambda: llama.busy_slots() == 0, "the server ending it", 10)


async def test_a_stream_that_ends_in_the_middle_of_a_key_loses_nothing(tmp_path: Path, stack: AsyncExitStack) -> None:
    pieces = ["Bearer can", "ary-can", "ary; a can"]
    events = [json.dumps({"choices": [{"index": 0, "delta": {"content": piece}}]}) for piece in pieces]
    text = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
    url = await stack.enter_async_context(answering(lambda request: web.Response(text=text)))
    on = await stage(tmp_path, {"small": [served("a", url, secret="models-key")]}, stack)
    await on.services.secrets.put("default", "models-key", "canary-canary")
    admission = Admission(
        tenant="default",
        principal="key_1",
        decision="d",
        deployments=("small",),
        replicas=on.replicas.known.__getitem__,
    )
    asked = read(Operation.CHAT, json.dumps({**call().body, "model": "small", "stream": True}).encode())
    exchange = await on.gateway.routes.performer.perform(admission, asked, deadline_seconds=60, waits=False)
    try:
        seen = []
        while (chunk := await exchange.next()) is not None:
            seen.append(chunk["choices"][0]["delta"]["content"])
    finally:
        exchange.close()
    assert exchange.is_complete
    assert "".join(seen) == "Bearer ***; a can"
