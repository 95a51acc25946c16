"""A RECORDING, not a model: an OpenAI-compatible server that plays back one conversation, ``recording.json``.

    python examples/log-agent/recorded_model.py [PORT]

Each recorded answer is given only to the message it followed; to anything else the server says that it has no answer.
It is what this example runs on where there is no model: in tests, and at first sight.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAME = "recording"
BODY_MOST = 4 * 1024 * 1024


def answer_to(messages: list[Mapping[str, Any]], recording: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The recorded message that followed a conversation like this one; ``None`` if there is none."""
    turn = sum(message.get("role") == "assistant" for message in messages)
    turns = recording["turns"]
    if turn >= len(turns) or turns[turn]["after"] not in str(messages[-1].get("content")):
        return None
    found: Mapping[str, Any] = turns[turn]["message"]
    return found


class Handler(BaseHTTPRequestHandler):
    """``POST /v1/chat/completions`` and ``GET /v1/models``."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one segment
    recording: Mapping[str, Any] = {}

    def do_GET(self) -> None:
        """The one model there is."""
        self._send(200, {"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": "recording"}]})

    def do_POST(self) -> None:
        """The recorded answer, whole or as a stream of one piece."""
        length = int(self.headers.get("Content-Length", "0"))
        if not 0 < length <= BODY_MOST:
            self._refuse(413, "the request is empty or too long")
            return
        body = json.loads(self.rfile.read(length))
        message = answer_to(body["messages"], self.recording)
        if message is None:
            self._refuse(400, "this is a recording, and it has no answer to that; name a model in OPENAI_BASE_URL")
            return
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        # A recording has no tokens; a quarter of the characters is what most models come to.
        asked, said = len(json.dumps(body["messages"])) // 4, len(json.dumps(message)) // 4
        usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
        head = {"id": "chatcmpl-recording", "created": int(time.time()), "model": NAME}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        if not body.get("stream"):
            self._send(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})
            return
        calls = [{"index": index, **call} for index, call in enumerate(message.get("tool_calls", ()))]
        delta = {**message, **({"tool_calls": calls} if calls else {})}
        chunk = {**head, "object": "chat.completion.chunk"}
        chunks = [
            {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
            {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
            {**chunk, "choices": [], "usage": usage},
        ]
        text = "".join(f"data: {one}\n\n" for one in [*map(json.dumps, chunks), "[DONE]"])
        self._write(200, "text/event-stream", text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing: whoever runs the agent sees its turns."""

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "invalid_request_error", "code": None}})

    def _send(self, status: int, answer: Mapping[str, Any]) -> None:
        self._write(status, "application/json", json.dumps(answer).encode())

    def _write(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


def server(port: int, path: Path = HERE / "recording.json") -> ThreadingHTTPServer:
    """A server on loopback, not yet serving; port 0 takes a free one."""
    Handler.recording = json.loads(path.read_text())
    made = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    made.daemon_threads = True
    return made


if __name__ == "__main__":
    with server(int(sys.argv[1]) if len(sys.argv) > 1 else 8399) as serving:
        print(f"a recording, not a model: http://127.0.0.1:{serving.server_address[1]}/v1", flush=True)
        serving.serve_forever()
