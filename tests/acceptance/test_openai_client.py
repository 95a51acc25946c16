"""The unmodified ``openai`` package against the real gateway in front of a real llama.cpp server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.acceptance.cluster import wait_for
from tests.acceptance.openai_stack import HELLO, WEATHER, ScriptedServer, Stack, running, said
from tests.llama_server import LlamaServer

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["in the control plane", "its own process"])
def stack(request: pytest.FixtureRequest, both: Stack) -> Iterator[Stack]:
    """Everything holds in either place."""
    if request.param == "its own process":
        both.gateway = both.cluster.start_gateway()
    yield both


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("openai")
    script = ScriptedServer()
    try:
        with LlamaServer(folder, "--embeddings", "--pooling", "mean") as llama:
            yield from running(folder, llama, script)
    finally:
        script.close()


@pytest.fixture
def client(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=stack.base, api_key=stack.cluster.api_key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def patient(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=stack.base, api_key=stack.cluster.api_key, max_retries=2, timeout=60) as client:
        yield client


class TestModels:
    def test_they_are_listed(self, client: OpenAI) -> None:
        assert {one.id for one in client.models.list()} >= {"small", "script"}

    def test_one_is_shown_by_name_or_alias(self, client: OpenAI) -> None:
        assert client.models.retrieve("small").id == "small"
        assert client.models.retrieve("gpt-4o").id == "small"

    def test_an_unknown_one_is_not_found(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="There are: "):
            client.models.retrieve("nope")


class TestChat:
    def test_an_answer(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(model="small", messages=HELLO, max_tokens=8, temperature=0)
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content
        assert answer.model == "small"
        assert answer.object == "chat.completion"

    def test_usage_is_said(self, client: OpenAI) -> None:
        usage = client.chat.completions.create(model="small", messages=HELLO, max_tokens=8).usage
        assert usage is not None
        assert usage.prompt_tokens > 0
        assert 0 < usage.completion_tokens <= 8

    def test_an_alias(self, client: OpenAI) -> None:
        assert client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=2).model == "small"

    def test_the_limit_is_kept_and_said(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(model="small", messages=HELLO, max_completion_tokens=2)
        assert answer.choices[0].finish_reason == "length"

    def test_the_same_seed_says_the_same(self, client: OpenAI) -> None:
        answers = [
            client.chat.completions.create(model="small", messages=HELLO, max_tokens=8, seed=7, temperature=0)
            for _ in range(2)
        ]
        assert answers[0].choices[0].message.content == answers[1].choices[0].message.content

    def test_parts_of_text(self, client: OpenAI) -> None:
        parts: Any = [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]
        assert client.chat.completions.create(model="small", messages=parts, max_tokens=4).choices

    def test_a_conversation_with_a_system_message(self, client: OpenAI) -> None:
        messages: Any = [
            {"role": "system", "content": "Be brief."},
            *HELLO,
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Again."},
        ]
        assert client.chat.completions.create(model="small", messages=messages, max_tokens=4).choices

    def test_fields_of_openai_alone_are_taken_and_left_out(self, stack: Stack, client: OpenAI) -> None:
        stack.script.will((200, said("hi")))
        client.chat.completions.create(model="script", messages=HELLO, user="me", store=False, metadata={"a": "b"})
        assert set(stack.script.requests[0]) == {"messages", "model"}
        assert stack.script.requests[0]["model"] == "m"

    def test_the_answers_headers_name_decision_and_replica(self, stack: Stack, client: OpenAI) -> None:
        raw = client.chat.completions.with_raw_response.create(model="small", messages=HELLO, max_tokens=2)
        decision = stack.get(f"/v1/decisions/{raw.headers['x-stockade-decision']}")
        assert (decision["entry"], decision["allow"]) == ("runtime.model", True)
        assert raw.headers["x-stockade-replica"] == "external-small"

    def test_under_the_plain_prefix_too(self, stack: Stack) -> None:
        with OpenAI(base_url=f"{stack.gateway}/v1", api_key=stack.cluster.api_key) as client:
            assert client.chat.completions.create(model="small", messages=HELLO, max_tokens=2).choices


class TestStreams:
    def test_chunks_make_the_answer(self, client: OpenAI) -> None:
        with client.chat.completions.create(model="small", messages=HELLO, max_tokens=8, stream=True) as stream:
            chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason in ("length", "stop")
        assert {chunk.model for chunk in chunks} == {"small"}
        assert all(chunk.usage is None for chunk in chunks)

    def test_usage_comes_last_when_asked_for(self, client: OpenAI) -> None:
        stream = client.chat.completions.create(
            model="small", messages=HELLO, max_tokens=4, stream=True, stream_options={"include_usage": True}
        )
        last = list(stream)[-1]
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.completion_tokens == 4

    def test_the_helper_that_gathers_a_stream(self, client: OpenAI) -> None:
        with client.chat.completions.stream(model="small", messages=HELLO, stop=["!", ".", "?"]) as stream:
            kinds = {event.type for event in stream}
            assert stream.get_final_completion().choices[0].message.content
        assert {"chunk", "content.delta", "content.done"} <= kinds

    def test_a_stream_is_an_event_stream(self, client: OpenAI) -> None:
        create = client.chat.completions.with_streaming_response.create
        with create(model="small", messages=HELLO, max_tokens=2, stream=True) as raw:
            assert raw.headers["content-type"].startswith("text/event-stream")
            assert raw.headers["x-stockade-model"] == "small"

    def test_a_stream_that_breaks_after_its_first_chunk_is_an_error(self, stack: Stack, client: OpenAI) -> None:
        stack.script.will((200, b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'))
        with pytest.raises(openai.APIError, match="broke off"):
            list(client.chat.completions.create(model="script", messages=HELLO, stream=True))

    def test_a_refusal_of_a_stream_has_a_status(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nope", messages=HELLO, stream=True)

    def test_leaving_a_stream_ends_it_at_the_server(self, stack: Stack, client: OpenAI) -> None:
        stream = client.chat.completions.create(
            model="small", messages=HELLO, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        wait_for(lambda: stack.llama.busy_slots() == 1, "the server working on it", 10)
        stream.close()
        wait_for(lambda: stack.llama.busy_slots() == 0, "the server ending it", 10)


class TestTools:
    def test_a_model_may_choose_not_to_call(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(
            model="small", messages=HELLO, tools=[WEATHER], tool_choice="auto", max_tokens=8
        )
        assert answer.choices[0].message.role == "assistant"

    def test_what_a_real_server_does_not_enforce_is_not_passed_off_as_done(self, client: OpenAI) -> None:
        with pytest.raises(openai.InternalServerError, match="called no tool"):
            client.chat.completions.create(
                model="small", messages=HELLO, tools=[WEATHER], tool_choice="required", temperature=0
            )

    def test_a_result_goes_back(self, client: OpenAI) -> None:
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
        messages: Any = [
            {"role": "user", "content": "Weather in Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
        ]
        answer = client.chat.completions.create(model="small", messages=messages, tools=[WEATHER], max_tokens=8)
        assert answer.choices

    def test_calls_pass_through(self, stack: Stack, client: OpenAI) -> None:
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        stack.script.will((200, said("", tool_calls=[call])))
        answer = client.chat.completions.create(model="script", messages=HELLO, tools=[WEATHER])
        calls: Any = answer.choices[0].message.tool_calls
        assert calls[0].function.name == "weather"

    def test_required_and_not_called_is_the_servers_failure(self, stack: Stack, client: OpenAI) -> None:
        stack.script.will((200, said("no")))
        with pytest.raises(openai.InternalServerError, match="called no tool"):
            client.chat.completions.create(model="script", messages=HELLO, tools=[WEATHER], tool_choice="required")

    def test_a_choice_that_names_no_tool_is_a_bad_request(self, client: OpenAI) -> None:
        choice: Any = {"type": "function", "function": {"name": "other"}}
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="small", messages=HELLO, tools=[WEATHER], tool_choice=choice)
        assert refused.value.param == "tool_choice"


class TestSchemas:
    FORMAT: ClassVar[Any] = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
    }

    def test_the_answer_fits(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "Which colour is grass?"}],
            response_format=self.FORMAT, max_tokens=120, temperature=0,
        )  # fmt: skip
        assert json.loads(answer.choices[0].message.content or "")["colour"] in ("red", "green")

    def test_a_pydantic_model_is_parsed(self, client: OpenAI) -> None:
        class Answer(BaseModel):
            yes: bool

        answer = client.chat.completions.parse(
            model="small", messages=HELLO, response_format=Answer, max_tokens=120, temperature=0
        )
        assert isinstance(answer.choices[0].message.parsed, Answer)

    def test_any_json_object(self, stack: Stack, client: OpenAI) -> None:
        stack.script.will((200, said('{"a": 1}')), (200, said("no object")))
        wanted: Any = {"type": "json_object"}
        answer = client.chat.completions.create(model="script", messages=HELLO, response_format=wanted)
        assert answer.choices[0].message.content == '{"a": 1}'
        with pytest.raises(openai.InternalServerError, match="does not fit"):
            client.chat.completions.create(model="script", messages=HELLO, response_format=wanted)

    def test_an_answer_that_does_not_fit_is_the_servers_failure(self, stack: Stack, client: OpenAI) -> None:
        stack.script.will((200, said('{"colour": "blue"}')))
        with pytest.raises(openai.InternalServerError, match="does not fit the schema"):
            client.chat.completions.create(model="script", messages=HELLO, response_format=self.FORMAT)

    def test_a_schema_that_is_none_is_a_bad_request(self, client: OpenAI) -> None:
        wrong: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}}
        with pytest.raises(openai.BadRequestError, match="not a JSON Schema"):
            client.chat.completions.create(model="small", messages=HELLO, response_format=wrong)


class TestOtherOperations:
    def test_a_completion(self, client: OpenAI) -> None:
        answer = client.completions.create(model="small", prompt="Once upon", max_tokens=4)
        assert answer.choices[0].text
        assert answer.usage is not None

    def test_a_completion_as_a_stream(self, client: OpenAI) -> None:
        chunks = list(client.completions.create(model="small", prompt="Once upon", max_tokens=4, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks)

    def test_embeddings(self, client: OpenAI) -> None:
        answer = client.embeddings.create(model="small", input=["one", "two"], encoding_format="float")
        assert [one.index for one in answer.data] == [0, 1]
        assert len(answer.data[0].embedding) > 100

    def test_embeddings_as_the_package_asks_for_them(self, client: OpenAI) -> None:
        assert isinstance(client.embeddings.create(model="small", input="one").data[0].embedding[0], float)

    def test_a_model_without_embeddings(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="does not take embeddings"):
            client.embeddings.create(model="script", input="one")


class TestRefusals:
    def test_no_key(self, stack: Stack) -> None:
        with OpenAI(base_url=stack.base, api_key="sk_wrong") as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="small", messages=HELLO)

    def test_a_key_without_the_scope(self, stack: Stack) -> None:
        with (
            OpenAI(base_url=stack.base, api_key=stack.key("run")) as client,
            pytest.raises(openai.PermissionDeniedError, match="'infer'"),
        ):
            client.models.list()

    def test_a_key_with_this_scope_alone(self, stack: Stack) -> None:
        with OpenAI(base_url=stack.base, api_key=stack.key("infer")) as client:
            assert client.chat.completions.create(model="small", messages=HELLO, max_tokens=2).choices

    def test_policy_says_no_and_why(self, stack: Stack, client: OpenAI) -> None:
        with pytest.raises(openai.PermissionDeniedError, match='"models"') as refused:
            client.chat.completions.create(model="forbidden", messages=HELLO)
        body: Any = refused.value.body
        assert body["code"] == "policy_denied"
        assert stack.get(f"/v1/decisions/{body['decision_id']}")["allow"] is False

    def test_an_unknown_model_names_those_there_are(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match=r"no model 'nope'.*small"):
            client.chat.completions.create(model="nope", messages=HELLO)

    def test_an_unknown_field_is_named(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="small", messages=HELLO, extra_body={"rid": "x"})
        assert refused.value.param == "rid"

    def test_no_messages(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="small", messages=[])
        assert refused.value.param == "messages"

    def test_what_the_server_does_not_take_is_a_bad_request_with_its_words(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="exceed"):
            client.chat.completions.create(model="small", messages=[{"role": "user", "content": "word " * 5000}])

    def test_a_body_that_is_too_large(self, client: OpenAI) -> None:
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model="small", messages=[{"role": "user", "content": "x" * (17 << 20)}])
        assert refused.value.status_code == 413

    def test_an_operation_there_is_not(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            client.images.generate(prompt="a cat")


class TestFailures:
    def test_a_server_that_answers_nonsense(self, stack: Stack, client: OpenAI) -> None:
        stack.script.will((200, b"<html>"))
        with pytest.raises(openai.InternalServerError, match="not JSON"):
            client.chat.completions.create(model="script", messages=HELLO)

    def test_a_failure_is_tried_again_as_the_client_was_told(self, stack: Stack, patient: OpenAI) -> None:
        stack.script.will((500, {"error": {"message": "out of memory"}}), (200, said("better")))
        answer = patient.chat.completions.create(model="script", messages=HELLO)
        assert (answer.choices[0].message.content, len(stack.script.requests)) == ("better", 2)

    def test_a_busy_server_is_a_rate_limit_with_a_time(self, stack: Stack, client: OpenAI) -> None:
        stack.script.will((429, {"error": {"message": "slow down"}}))
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="script", messages=HELLO)
        assert int(refused.value.response.headers["retry-after"]) >= 1

    def test_a_rate_limit_is_waited_for(self, stack: Stack, patient: OpenAI) -> None:
        stack.script.will((429, {}), (200, said("now")))
        assert patient.chat.completions.create(model="script", messages=HELLO).choices[0].message.content == "now"

    def test_a_bad_request_is_not_tried_again(self, stack: Stack, patient: OpenAI) -> None:
        stack.script.will((400, {"error": {"message": "no such sampler"}}))
        with pytest.raises(openai.BadRequestError, match="no such sampler"):
            patient.chat.completions.create(model="script", messages=HELLO)
        assert len(stack.script.requests) == 1

    def test_the_next_model_of_the_list_answers(self, stack: Stack, client: OpenAI) -> None:
        stack.script.will((503, {}))
        answer = client.chat.completions.create(
            model="script", messages=HELLO, max_tokens=2, extra_body={"models": ["small"]}
        )
        assert answer.model == "small"

    def test_a_wrong_key_of_ours_is_not_the_callers_failure(self, stack: Stack, client: OpenAI) -> None:
        stack.script.will((401, {"error": {"message": "bad key sk-123"}}))
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model="script", messages=HELLO)
        assert "sk-123" not in str(refused.value)

    def test_a_caller_waits_no_longer_than_it_said(self, client: OpenAI) -> None:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="small", messages=HELLO, max_tokens=300, timeout=0.05)


class TestAsync:
    @pytest.mark.anyio
    async def test_an_answer_and_a_stream(self, stack: Stack) -> None:
        async with AsyncOpenAI(base_url=stack.base, api_key=stack.cluster.api_key) as client:
            answer = await client.chat.completions.create(model="small", messages=HELLO, max_tokens=4)
            assert answer.choices
            stream = await client.chat.completions.create(model="small", messages=HELLO, max_tokens=4, stream=True)
            assert [chunk async for chunk in stream]

    @pytest.mark.anyio
    async def test_an_error(self, stack: Stack) -> None:
        async with AsyncOpenAI(base_url=stack.base, api_key=stack.cluster.api_key) as client:
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="nope", messages=HELLO)

    @pytest.mark.anyio
    async def test_models(self, stack: Stack) -> None:
        async with AsyncOpenAI(base_url=stack.base, api_key=stack.cluster.api_key) as client:
            assert "small" in [one.id async for one in client.models.list()]
