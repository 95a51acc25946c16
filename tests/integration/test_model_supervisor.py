"""A node's model servers with a real llama.cpp: restarted, drained, adopted only where they would be started alike."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import pytest

from dataplane.model_wire import DesiredModels, ModelReplica, ModelState
from dataplane.models import replica as replica_module
from dataplane.models.engines import engines
from dataplane.models.process import ServerProcess
from dataplane.models.supervisor import ModelSupervisor
from stockade.cli import places
from tests import model_engines

pytestmark = pytest.mark.anyio
SECONDS = 60.0
LEFT: list[subprocess.Popen[bytes]] = []
"""Keepers whose daemon is taken to be dead: they are this process's children nevertheless."""


@pytest.fixture(autouse=True)
def no_zombies() -> Iterator[None]:
    """Every test ends what it left, or this fails."""
    yield
    while LEFT:
        LEFT.pop().wait(SECONDS)


def supervisor(folder: Path, *, models: Path | None = None, lifeline: int = 0) -> ModelSupervisor:
    components = places.components()
    return ModelSupervisor(folder, models or components / "models", engines(components, folder / "help"), lifeline)


def wish(name: str = "rep_1", **changed: Any) -> ModelReplica:
    given = {
        "replica": name, "deployment": "small", "spec": "s", "engine": "llamacpp",
        "source": model_engines.MODELS["llamacpp"], "served_name": "small",
    }  # fmt: skip
    return ModelReplica(**{**given, **changed})


@asynccontextmanager
async def serving(made: ModelSupervisor, *, crash: bool = False) -> AsyncIterator[ModelSupervisor]:
    """Between adoption and the end; with ``crash`` the servers are left as a killed daemon leaves them."""
    await made.adopt()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.serve)
        try:
            yield made
        finally:
            tasks.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        if crash:
            LEFT.extend(one.process._child for one in made._servers.values() if one.process and one.process._child)
            await made._asking.close()
        else:
            await made.close()


def states(made: ModelSupervisor) -> dict[str, ModelState]:
    return {one.replica: one for one in made.report().states}


async def until(made: ModelSupervisor, holds: Callable[[dict[str, ModelState]], bool]) -> dict[str, ModelState]:
    with anyio.fail_after(SECONDS):
        while not holds(found := states(made)):  # noqa: ASYNC110 - what it waits for are processes
            await anyio.sleep(0.05)
    return found


def is_ready(found: dict[str, ModelState]) -> bool:
    return bool(found) and all(one.state == "ready" for one in found.values())


def pid(folder: Path) -> int:
    found = ServerProcess.adopt(folder / "replicas" / "rep_1")
    assert found is not None
    return found.pid


async def test_what_is_wanted_answers_and_what_is_not_is_gone(tmp_path: Path) -> None:
    model_engines.require("llamacpp")
    async with serving(supervisor(tmp_path)) as made:
        made.want(DesiredModels(revision="1", replicas=[wish()]))
        assert made.endpoint("rep_1") is None
        (state,) = (await until(made, is_ready)).values()
        assert (state.slots, state.restarts, state.spec) == (4, 0, "s")
        endpoint = made.endpoint("rep_1")
        assert endpoint is not None and endpoint[0] == "127.0.0.1"
        async with aiohttp.ClientSession() as session:
            asked = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
            async with session.post(f"http://127.0.0.1:{endpoint[1]}/v1/chat/completions", json=asked) as answer:
                assert (await answer.json())["usage"]["completion_tokens"] > 0
        log = await made.log_tail("rep_1")
        assert log is not None and b"listening" in log.data
        made.want(DesiredModels(revision="2"))
        await until(made, lambda found: not found)
        assert made.endpoint("rep_1") is None
        assert not list((tmp_path / "replicas").iterdir())


async def test_a_call_that_runs_is_answered_before_its_server_ends(tmp_path: Path) -> None:
    model_engines.require("llamacpp")
    async with serving(supervisor(tmp_path)) as made, aiohttp.ClientSession() as session:
        made.want(DesiredModels(revision="1", replicas=[wish()]))
        await until(made, is_ready)
        endpoint = made.endpoint("rep_1")
        assert endpoint is not None
        asked = {"prompt": "Once upon a time", "n_predict": 150, "stream": True, "ignore_eos": True}
        async with session.post(f"http://127.0.0.1:{endpoint[1]}/completion", json=asked) as answer:
            await answer.content.readline()
            made.want(DesiredModels(revision="2"))
            await until(made, lambda found: found["rep_1"].state == "draining")
            assert made.endpoint("rep_1") == endpoint
            rest = await answer.content.read()
        assert b'"stop":true' in rest
        await until(made, lambda found: not found)


async def test_only_a_server_that_would_be_started_alike_is_adopted(tmp_path: Path) -> None:
    model_engines.require("llamacpp")
    async with serving(supervisor(tmp_path), crash=True) as made:
        made.want(DesiredModels(revision="1", replicas=[wish()]))
        await until(made, is_ready)
    first = pid(tmp_path)
    async with serving(supervisor(tmp_path), crash=True) as made:
        assert states(made)["rep_1"].state == "starting", "until it has answered again"
        await until(made, is_ready)
        assert made.revision == "", "it asks what is wanted"
        made.want(DesiredModels(revision="1", replicas=[wish()]))
        assert pid(tmp_path) == first
    async with serving(supervisor(tmp_path, lifeline=1), crash=True) as made:
        assert states(made) == {}
        assert ServerProcess.adopt(tmp_path / "replicas" / "rep_1") is None


async def test_a_server_that_cannot_start_is_tried_again_with_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_engines.require("llamacpp")
    monkeypatch.setattr(replica_module, "FIRST_PAUSE_SECONDS", 0.05)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "broken.gguf").write_text("this is no model")
    async with serving(supervisor(tmp_path / "state", models=tmp_path / "models")) as made:
        made.want(DesiredModels(revision="1", replicas=[wish(source="broken.gguf")]))
        failed = await until(made, lambda found: found["rep_1"].restarts >= 2 and found["rep_1"].state == "failed")
        assert "it ended with 1; started again in" in failed["rep_1"].detail
        assert "it said:" in failed["rep_1"].detail
        assert made.endpoint("rep_1") is None


async def test_names_that_would_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    async with serving(supervisor(tmp_path / "state")) as made:
        replicas = [wish("../../escaped"), wish("rep_2", source="../x.gguf"), wish("rep_3", engine="vllm")]
        made.want(DesiredModels(revision="1", replicas=replicas))
        found = await until(made, lambda found: all(one.state == "failed" for one in found.values()))
        assert "not a name in the models folder" in found["rep_2"].detail
        assert "does not know its engine" in found["rep_3"].detail
    assert {path.name for path in await anyio.to_thread.run_sync(lambda: list(tmp_path.iterdir()))} <= {"state"}
