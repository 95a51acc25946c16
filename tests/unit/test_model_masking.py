"""The key of an external model server does not come back out of what that server says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.inference.gateway.masking import Masking

KEY = "sk-live-SECRETSECRET"
pytestmark = pytest.mark.anyio


def put(where: str, text: str, **more: Any) -> dict[str, Any]:
    choices: dict[str, dict[str, Any]] = {
        "text": {"text": text},
        "content": {"delta": {"content": text}},
        "arguments": {"delta": {"tool_calls": [{"index": 1, "function": {"arguments": text}}]}},
    }
    return {"id": "c", "choices": [{"index": 0, "finish_reason": None, **choices[where], **more}]}


def got(where: str, chunk: dict[str, Any]) -> str:
    choice = chunk["choices"][0]
    if where == "text":
        return str(choice["text"])
    delta = choice["delta"]
    return str(delta["content"] if where == "content" else delta["tool_calls"][0]["function"]["arguments"])


@pytest.mark.parametrize("where", ["text", "content", "arguments"])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("form", [KEY, KEY.encode().hex()])
async def test_a_key_cut_between_chunks_is_masked(where: str, size: int, form: str) -> None:
    masking = Masking(KEY)
    text = f"is it {form}? no: {form}. {form[:9]}"
    chunks = [put(where, text[at : at + size]) for at in range(0, len(text), size)]
    seen = [got(where, await masking.answer(one, is_chunk=True)) for one in chunks]
    if (rest := masking.rest()) is not None:
        seen.append(got(where, rest))
    assert "".join(seen) == f"is it ***? no: ***. {form[:9]}"
    assert masking.rest() is None


async def test_what_waits_goes_on_with_the_end_of_its_choice() -> None:
    masking = Masking(KEY)
    assert got("content", await masking.answer(put("content", "tears"), is_chunk=True)) == "tear"
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    assert got("content", await masking.answer(end, is_chunk=True)) == "s"
    assert masking.rest() is None


@pytest.mark.parametrize("broken", [{"delta": []}, {"delta": {"tool_calls": {}}}, {"delta": None}])
async def test_what_waits_goes_on_however_the_end_looks(broken: dict[str, Any]) -> None:
    masking = Masking(KEY)
    await masking.answer(put("arguments", "tears"), is_chunk=True)
    end = await masking.answer({"choices": [{"finish_reason": "stop", **broken}]}, is_chunk=True)
    assert got("arguments", end) == "s"


async def test_calls_of_one_index_in_one_chunk_stay_apart() -> None:
    calls = [{"function": {"arguments": text}} for text in ("{}", f"[{KEY[:9]}", f"{KEY[9:]}]", "s")]
    chunk = {"choices": [{"delta": {"tool_calls": calls}, "finish_reason": "tool_calls"}]}
    seen = await Masking(KEY).answer(chunk, is_chunk=True)
    found = [one["function"]["arguments"] for one in seen["choices"][0]["delta"]["tool_calls"]]
    assert found == ["{}", "[", "***]", "s"]


async def test_whole_answers_and_errors_are_masked() -> None:
    masking = Masking(KEY)
    for said in ({"choices": [{"message": {"content": f"a {KEY}"}}]}, {"error": {"message": f"a {KEY}"}}):
        assert KEY not in json.dumps(await masking.answer(said, is_chunk=False))
    assert masking.error({"message": f"Bearer {KEY}"}) == {"message": "Bearer ***"}


async def test_a_key_that_is_a_common_word_is_masked_in_errors_only() -> None:
    masking = Masking("test")
    answer = {"choices": [{"message": {"content": "a test"}}]}
    assert await masking.answer(answer, is_chunk=False) == answer
    assert masking.error({"message": "key test"}) == {"message": "key ***"}


async def test_without_a_key_nothing_changes() -> None:
    chunk = put("content", "sk-")
    assert await Masking(None).answer(chunk, is_chunk=True) is chunk
