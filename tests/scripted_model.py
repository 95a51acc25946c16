"""A scripted model server: real HTTP, OpenAI's chat completions, answers that a test wrote. Not a model.

It writes down every request it gets, so that a repeated call is seen from outside. ``python -m tests.scripted_model``
is not a thing: tests start it in their own process.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.loopback_server import HOLD_SECONDS, LoopbackHandler, LoopbackServer

NAME = "scripted"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as the server saw it; ``at`` is wall-clock seconds, ``key`` its idempotency key if it had one."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float

    @property
    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.body["messages"]
        return found

    @property
    def turn(self) -> int:
        """How many answers the conversation has so far."""
        return sum(message["role"] == "assistant" for message in self.messages)


@dataclass(frozen=True, kw_only=True)
class Say:
    """One answer: text or tool calls ``(name, arguments)``, or an HTTP ``status`` that is not 200."""

    text: str | None = None
    calls: tuple[tuple[str, Any], ...] = ()
    status: int = 200
    finish_reason: str = ""
    prompt_tokens: int = 10
    completion_tokens: int = 5
    headers: dict[str, str] = field(default_factory=dict)

    def message(self) -> dict[str, Any]:
        """OpenAI's assistant message. Arguments that are text go out as they are, to be able to send nonsense."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{index}",
                    "type": "function",
                    "function": {"name": name, "arguments": args if isinstance(args, str) else json.dumps(args)},
                }
                for index, (name, args) in enumerate(self.calls)
            ]
        return message


Script = Callable[[Asked], Say]


class ScriptedModel(LoopbackServer):
    """Answers ``POST /v1/chat/completions`` as ``script`` says, ``GET /v1/models`` with one model, ``GET /health``.

    What ``hold`` picks is answered only after ``release``.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.aborted = 0
        self._asked: list[Asked] = []
        self._lock = threading.Lock()
        self._came = threading.Condition(self._lock)
        self._hold: Callable[[Asked], bool] = lambda _asked: False
        server = self

        class Handler(LoopbackHandler):
            def do_GET(self) -> None:
                listed = {"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": "tests"}]}
                self._send(200, listed if self.path.endswith("/models") else {"status": "ok"}, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
                say = server._answer(Asked(body=body, headers=dict(self.headers.items()), at=time.time()))
                if say.status != 200:
                    error = {"error": {"message": say.text or "scripted", "type": "scripted", "code": say.status}}
                    self._send(say.status, error, say.headers)
                elif body.get("stream"):
                    self._stream(say, body)
                else:
                    self._send(200, _completion(say), say.headers)

            def _send(self, status: int, answer: dict[str, Any], headers: dict[str, str]) -> None:
                content = json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                    self.wfile.flush()
                except OSError:  # whoever asked was killed, or gave up
                    server.aborted += 1
                    self.close_connection = True

            def _stream(self, say: Say, body: dict[str, Any]) -> None:
                chunks = [json.dumps(chunk) for chunk in _chunks(say, body)]
                content = "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"]).encode()
                try:
                    self.send_response(200)
                    self.send_header("Content-Type", "text/event-stream")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                    self.wfile.flush()
                except OSError:
                    server.aborted += 1
                    self.close_connection = True

        super().__init__(Handler)

    @property
    def url(self) -> str:
        """What an ``external`` deployment names."""
        return f"http://{self.authority}/v1"

    def asked(self) -> list[Asked]:
        """Every request so far, in order."""
        with self._lock:
            return list(self._asked)

    def wait_for(self, count: int, seconds: float = 30.0) -> None:
        """Until so many requests came. Raises ``AssertionError``."""
        with self._came:
            came = self._came.wait_for(lambda: len(self._asked) >= count, seconds)
        assert came, f"{count} requests did not come within {seconds:g} s"

    def hold(self, when: Callable[[Asked], bool]) -> None:
        """Answer requests for which ``when`` holds only after ``release``."""
        self._hold = when

    def _answer(self, asked: Asked) -> Say:
        with self._came:
            self._asked.append(asked)
            self._came.notify_all()
        if self._hold(asked):
            self._release.wait(HOLD_SECONDS)
        return self.script(asked)


def _usage(say: Say) -> dict[str, int]:
    total = say.prompt_tokens + say.completion_tokens
    counted = {"prompt_tokens": say.prompt_tokens, "completion_tokens": say.completion_tokens}
    return {**counted, "total_tokens": total}


def _reason(say: Say) -> str:
    return say.finish_reason or ("tool_calls" if say.calls else "stop")


def _completion(say: Say) -> dict[str, Any]:
    choice = {"index": 0, "message": say.message(), "finish_reason": _reason(say)}
    head = {"id": "chatcmpl-scripted", "object": "chat.completion", "created": 0, "model": NAME}
    return {**head, "choices": [choice], "usage": _usage(say)}


def _chunks(say: Say, body: dict[str, Any]) -> list[dict[str, Any]]:
    head = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0, "model": NAME}
    message = say.message()
    delta: dict[str, Any] = {"role": "assistant", "content": message["content"]}
    if "tool_calls" in message:
        delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(message["tool_calls"])]
    chunks = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": _reason(say)}]},
    ]
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append({**head, "choices": [], "usage": _usage(say)})
    return chunks
