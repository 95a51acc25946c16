"""What the gateway counts, and what it does without its control plane, as the ``openai`` package meets it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.acceptance.cluster import wait_for
from tests.acceptance.openai_stack import HELLO, ScriptedServer, Stack, running
from tests.llama_server import LlamaServer


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    script = ScriptedServer()
    try:
        with LlamaServer(tmp_path) as llama:
            yield from running(tmp_path, llama, script)
    finally:
        script.close()


def test_tokens_are_counted_for_the_key_that_called(stack: Stack) -> None:
    with OpenAI(base_url=stack.base, api_key=stack.key("infer", "read")) as client:
        answer = client.chat.completions.create(model="small", messages=HELLO, max_tokens=4)
        me = httpx2.get(f"{stack.cluster.url}/v1/whoami", headers={"Authorization": f"Bearer {client.api_key}"}).json()
    rows: list[dict[str, Any]] = []

    def counted() -> bool:
        rows[:] = stack.get(f"/v1/usage?by={me['id']}")["data"]
        return bool(rows)

    wait_for(counted, "the usage being counted", 10)
    (row,) = rows
    assert answer.usage is not None
    assert (row["calls"], row["failed"], row["model"]) == (1, 0, "small")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )


def test_a_gateway_without_its_control_plane_refuses_and_goes_on_when_it_is_back(stack: Stack) -> None:
    base = f"{stack.cluster.start_gateway()}/openai/v1"
    with OpenAI(base_url=base, api_key=stack.cluster.api_key, max_retries=0) as client:
        stack.cluster.kill_control_plane()
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model="small", messages=HELLO, max_tokens=2)
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"]
        stack.cluster.start_control_plane()
        assert client.chat.completions.create(model="small", messages=HELLO, max_tokens=2).choices
