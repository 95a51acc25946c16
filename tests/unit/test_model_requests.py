"""Requests to models, held against what may go on; and answers of servers, which are hostile."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from controlplane.inference.gateway import reading
from controlplane.inference.gateway.gathering import CHUNKS_MOST, LOGPROB_BYTES, Gathered
from controlplane.inference.gateway.questions import limited
from controlplane.inference.gateway.reading import BODY_BYTES_MOST, BadAnswer, Events
from controlplane.inference.gateway.refusals import GatewayRefused
from controlplane.inference.gateway.requests import ModelRequest, Operation, read

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def chat(**changes: Any) -> ModelRequest:
    return read(Operation.CHAT, json.dumps({"model": "small", "messages": HELLO, **changes}).encode())


def test_a_chat_is_read() -> None:
    asked = chat(stream=True, stream_options={"include_usage": True}, tools=[TOOL], max_completion_tokens=5, user="u")
    assert (asked.models, asked.is_stream, asked.wants_usage, asked.tools) == (("small",), True, True, ("look",))
    assert asked.max_tokens == 5
    assert asked.body == {"messages": HELLO, "tools": [TOOL], "max_completion_tokens": 5}


def test_models_are_a_list_with_commas_or_a_field_of_its_own() -> None:
    assert chat(model="big, small", models=["tiny", "big"]).models == ("big", "small", "tiny")


def test_an_image_needs_a_model_that_sees() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    assert chat(messages=[{"role": "user", "content": [part]}]).modalities == {"text", "image"}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": ",".join(map(str, range(9)))}, "model"),
        ({"models": "small"}, "models"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0]"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}]}
                ]
            },
            "messages[0].content[0].image_url.url",
        ),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"n": 100}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"custom_logit_processor": "code"}, "custom_logit_processor"),
        ({"rid": "another's"}, "rid"),
        ({"cache_salt": "another's"}, "cache_salt"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "thing"}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://10.0.0.1/x"}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {"$ref": "#"}}}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_what_cannot_go_on_is_refused_by_name_with_a_fix(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayRefused) as refused:
        chat(**changes)
    assert (refused.value.code, refused.value.param) == ("invalid_request", param)
    assert refused.value.fix


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(GatewayRefused):
        read(Operation.CHAT, text)


def test_a_limit_of_policy_lowers_what_was_asked_and_never_raises_it() -> None:
    assert limited({}, None, "max_tokens") == {}
    assert limited({}, 10, "max_tokens") == {"max_tokens": 10}
    assert limited({"max_tokens": 50, "max_completion_tokens": 5}, 10, "max_tokens") == {
        "max_tokens": 10,
        "max_completion_tokens": 5,
    }


def reader(*pieces: bytes) -> Callable[[], Awaitable[bytes]]:
    left = list(pieces)

    async def read_() -> bytes:
        return left.pop(0) if left else b""

    return read_


@pytest.mark.anyio
async def test_a_stream_is_read_however_it_is_cut() -> None:
    text = b': ping\n\ndata: {"choices":[1]}\r\n\r\nevent: x\ndata: {"choices":\ndata: [2]}\n\ndata: [DONE]\n\n'
    for size in (1, 3, 1000):
        events = Events(reader(*(text[at : at + size] for at in range(0, len(text), size))))
        assert [await events.next() for _ in range(3)] == [{"choices": [1]}, {"choices": [2]}, None]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([b'data: {"choices":[]}\n'], "ended before"),
        ([b"data: nonsense\n\n"], "not JSON"),
        ([b"data: []\n\n"], "not a JSON object"),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], "not JSON"),
        ([b'error: {"message":"out of\\nmemory"}\n\n'], "out of memory"),
        ([b"data: " + b"x" * 600_000, b"x" * 600_000], "more than"),
        ([(b"data: " + b"x" * 1000 + b"\n") * 600] * 2, "more than"),
        ([b":" + b"x" * 900_000 + b"\n"] * 40, "more than"),
    ],
)
async def test_a_hostile_stream_ends_with_a_reason(pieces: list[bytes], why: str) -> None:
    with pytest.raises(BadAnswer, match=why):
        events = Events(reader(*pieces))
        while True:
            await events.next()


@pytest.mark.anyio
async def test_a_body_without_end_is_not_kept() -> None:
    async def endless() -> bytes:
        return b"x" * (1 << 20)

    with pytest.raises(BadAnswer, match="more than"):
        await reading.whole(endless)


def test_only_known_fields_go_on_under_our_name() -> None:
    kept = reading.rebuilt(
        {"id": "1", "model": "/secret/path", "timings": {}, "choices": [{}]}, "small", Operation.CHAT
    )
    assert kept == {"id": "1", "model": "small", "choices": [{}]}


@pytest.mark.parametrize("answer", [{}, {"choices": {}}, {"choices": [1]}, {"error": {"message": "no"}}])
def test_what_is_no_answer_is_one_of_a_broken_server(answer: dict[str, Any]) -> None:
    with pytest.raises(BadAnswer):
        reading.rebuilt(answer, "small", Operation.CHAT)


@pytest.mark.parametrize(
    ("operation", "key", "other"),
    [
        (Operation.CHAT, "choices", "data"),
        (Operation.COMPLETION, "choices", "data"),
        (Operation.EMBEDDING, "data", "choices"),
    ],
)
def test_an_answer_to_another_operation_is_none(operation: Operation, key: str, other: str) -> None:
    with pytest.raises(BadAnswer, match=key):
        reading.rebuilt({other: []}, "small", operation)
    assert reading.rebuilt({key: [], other: []}, "small", operation) == {key: [], "model": "small"}


@pytest.mark.parametrize("count", [-1, 2**60, "5", None, 1.5, True])
def test_token_counts_are_not_taken_on_trust(count: Any) -> None:
    assert reading.usage({"usage": {"prompt_tokens": count, "completion_tokens": 3}}) == (0, 3)


def chunk(delta: dict[str, Any] | None = None, index: Any = 0, **choice: Any) -> dict[str, Any]:
    return {"id": "c", "model": "small", "choices": [{"index": index, "delta": delta or {}, **choice}]}


def test_a_stream_becomes_one_answer() -> None:
    gathered = Gathered("chat.completion")
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
    for one in (
        chunk({"role": "assistant", "content": None}),
        chunk({"content": "I "}, logprobs={"content": [1]}),
        chunk({"content": "look."}, logprobs={"content": [2]}),
        chunk({"content": "other"}, index=1),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}),
        chunk(finish_reason="tool_calls"),
        {"id": "c", "model": "small", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    ):
        gathered.add(one)
    whole = gathered.whole()
    assert (whole["object"], whole["usage"]) == ("chat.completion", {"prompt_tokens": 1, "completion_tokens": 2})
    first, second = whole["choices"]
    called = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
    assert first["message"] == {"role": "assistant", "content": "I look.", "tool_calls": [called]}
    assert (first["finish_reason"], first["logprobs"]) == ("tool_calls", {"content": [1, 2]})
    assert second["message"]["content"] == "other"


@pytest.mark.parametrize(
    "broken",
    [
        chunk(index=-1),
        chunk(index="0"),
        chunk(index=10**9),
        chunk({"content": 5}),
        chunk({"tool_calls": {"index": 0}}),
        chunk({"tool_calls": [1]}),
        chunk({"tool_calls": [{"index": 10**9}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"name": []}}]}) | {"choices": [{"delta": {"content": []}}]},
    ],
)
def test_a_stream_that_cannot_be_put_together_is_a_broken_servers(broken: dict[str, Any]) -> None:
    with pytest.raises(BadAnswer):
        Gathered("chat.completion").add(broken)


class Counted(str):
    """Text that counts what is copied to stand before it."""

    copied = 0

    def __radd__(self, before: str) -> str:
        Counted.copied += len(before)
        return before + str(self)


@pytest.mark.parametrize(
    "add",
    [
        lambda piece: chunk({"content": piece}),
        lambda piece: chunk(text=piece),
        lambda piece: chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}),
    ],
)
def test_a_chunk_does_not_copy_those_before_it(add: Callable[[str], dict[str, Any]]) -> None:
    gathered = Gathered("chat.completion")
    for _ in range(100):
        gathered.add(add(Counted("piece")))
    assert Counted.copied == 0
    assert "piece" * 100 in json.dumps(gathered.whole())


def test_log_probabilities_without_end_are_not_kept() -> None:
    gathered = Gathered("chat.completion")
    some = chunk(logprobs={"content": [1] * 1024})
    with pytest.raises(BadAnswer, match="more than"):
        for _ in range(BODY_BYTES_MOST // LOGPROB_BYTES // 1024 + 1):
            gathered.add(some)


def test_chunks_without_end_are_not_taken() -> None:
    gathered = Gathered("chat.completion")
    with pytest.raises(BadAnswer, match="chunks"):
        for _ in range(CHUNKS_MOST + 1):
            gathered.add({"choices": []})
