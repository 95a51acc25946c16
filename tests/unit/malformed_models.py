"""Malformed `llm` and `agent` steps, and what is said of each."""

from __future__ import annotations

from typing import Any

from tests.unit.malformed_workflows import workflow

CASES: list[tuple[str, dict[str, Any], str, str, str, str]] = [
    # name, document, pointer, type, in the message, in the hint
    (
        "llm without a model",
        workflow({"id": "a", "llm": {"prompt": "x"}}),
        "/steps/0/llm",
        "schema",
        "no model",
        "defaults",
    ),
    (
        "llm with prompt and messages",
        workflow({"id": "a", "llm": {"model": "m", "prompt": "x", "messages": "${input}"}}),
        "/steps/0/llm",
        "schema",
        "exactly one",
        "prompt",
    ),
    (
        "messages as text",
        workflow({"id": "a", "llm": {"model": "m", "messages": "say ${input}"}}),
        "/steps/0/llm/messages",
        "schema",
        "a list",
        "${…}",
    ),
    (
        "a message without content",
        workflow({"id": "a", "llm": {"model": "m", "messages": [{"role": "user"}]}}),
        "/steps/0/llm/messages/0/content",
        "schema",
        "required",
        "content",
    ),
    (
        "an unknown member of a message",
        workflow({"id": "a", "llm": {"model": "m", "messages": [{"role": "user", "content": "x", "nme": 1}]}}),
        "/steps/0/llm/messages/0/nme",
        "unknown_member",
        "a message",
        "content",
    ),
    (
        "an image elsewhere",
        workflow(
            {
                "id": "a",
                "llm": {
                    "model": "m",
                    "messages": [
                        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://inside/"}}]}
                    ],
                },
            }
        ),
        "/steps/0/llm/messages/0/content/0/image_url/url",
        "schema",
        "data:image",
        "",
    ),
    (
        "an output that is no schema",
        workflow({"id": "a", "llm": {"model": "m", "prompt": "x", "output": {"type": "objct"}}}),
        "/steps/0/llm/output",
        "schema",
        "objct",
        "JSON Schema",
    ),
    (
        "an output that refers outside",
        workflow({"id": "a", "llm": {"model": "m", "prompt": "x", "output": {"$ref": "http://inside/"}}}),
        "/steps/0/llm/output/$ref",
        "schema",
        "leave the document",
        "$defs",
    ),
    (
        "near a model call",
        workflow({"id": "a", "llm": {"model": "m", "prompt": "x"}, "near": "data://d"}),
        "/steps/0/near",
        "schema",
        "does not apply",
        "code, tool",
    ),
    (
        "an agent without a prompt",
        workflow({"id": "a", "agent": {"model": "m"}}),
        "/steps/0/agent/prompt",
        "schema",
        "required",
        "prompt",
    ),
    (
        "inputs of an agent without code mode",
        workflow({"id": "a", "agent": {"model": "m", "prompt": "x", "inputs": {"log": "data://d/log"}}}),
        "/steps/0/agent/inputs",
        "schema",
        "code of an agent",
        "code: true",
    ),
    (
        "a sandbox for an agent without code mode",
        workflow({"id": "a", "agent": {"model": "m", "prompt": "x"}, "sandbox": {"tier": "wasm"}}),
        "/steps/0/sandbox",
        "schema",
        "code of an agent",
        "code: true",
    ),
    (
        "an agent's file on the host",
        workflow({"id": "a", "agent": {"model": "m", "prompt": "x", "code": True, "inputs": {"p": "/etc/passwd"}}}),
        "/steps/0/agent/inputs/p",
        "address",
        "host paths",
        "--data",
    ),
    (
        "an unknown budget of an agent",
        workflow({"id": "a", "agent": {"model": "m", "prompt": "x", "budget": {"usd": 1}}}),
        "/steps/0/agent/budget/usd",
        "unknown_member",
        "budget",
        "tokens, steps",
    ),
]
