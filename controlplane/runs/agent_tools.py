"""What an agent's model is offered, and what it made of it: tools as functions, and the other way. Pure.

A tool ``tickets.search`` is the function ``tickets__search``; in code mode there is one function, ``run_python``,
whose description lists the tools as Python. What a model sends is hostile: it is bounded, and named by us.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from controlplane.runs.bounds import TooMuch, bounded
from controlplane.tools.registry import Tool, ToolRegistry, match
from controlplane.workflows.documents import check_values, refuse_constant
from controlplane.workflows.spec import Agent

RUN_PYTHON = "run_python"
CALLS_MOST = 32
"""Calls of one turn that are looked at."""
ARGUMENTS_MOST = 1024 * 1024
"""Characters of one call's arguments."""
_FUNCTION_NAME_MOST = 64
_DESCRIPTION_MOST = 1024
_SHOWN_MOST = 300
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def granted(agent: Agent, registry: ToolRegistry, tenant: str, pinned: Mapping[str, str]) -> list[Tool]:
    """The registered tools the agent may call, sorted, as they were when its run was admitted."""
    wanted = agent.tools or ()
    return [tool for tool in registry.list(tenant) if match(wanted, tool.name) and pinned.get(tool.name) == tool.digest]


def functions(agent: Agent, tools: Sequence[Tool], network: Sequence[tuple[str, int]] = ()) -> list[dict[str, Any]]:
    """The functions as OpenAI's ``tools`` of a request. ``network``: what code may reach by itself."""
    if agent.code:
        parameters = {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "Python source."}},
            "required": ["code"],
            "additionalProperties": False,
        }
        return [_function(RUN_PYTHON, _described_code(agent, tools, network), parameters)]
    names = function_names(tools)
    return [
        _function(function, tool.description[:_DESCRIPTION_MOST], tool.spec.get("input", {"type": "object"}))
        for function, tool in names.items()
    ]


def function_names(tools: Iterable[Tool]) -> dict[str, Tool]:
    """Each tool under a name that a function may have, unique among them."""
    found: dict[str, Tool] = {}
    for tool in tools:
        base = tool.name.replace(".", "__")[:_FUNCTION_NAME_MOST]
        name, number = base, 2
        while name in found:
            end = f"_{number}"
            name, number = base[: _FUNCTION_NAME_MOST - len(end)] + end, number + 1
        found[name] = tool
    return found


def calls_of(message: Mapping[str, Any], agent: Agent, tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """What the model wants done, in order: each ``{"name", "tool", "args"}``, or ``{"name", "code"}``, or, when it
    cannot be done as it is, ``{"name", "arguments", "error"}``.

    Raises ``ValueError``, ``TypeError`` or ``RecursionError`` for what is no JSON.
    """
    wanted = message.get("tool_calls")
    if not isinstance(wanted, list):
        return []
    names = {} if agent.code else function_names(tools)
    calls = [_call(one, agent, names) for one in wanted[:CALLS_MOST]]
    if len(wanted) > CALLS_MOST:
        error = f"{len(wanted)} calls in one turn, of which the first {CALLS_MOST} are made: send the others again"
        calls.append({"name": "too_many", "arguments": "{}", "error": error})
    return calls


def _call(wanted: Any, agent: Agent, names: Mapping[str, Tool]) -> dict[str, Any]:
    function = wanted.get("function") if isinstance(wanted, dict) else None
    function = function if isinstance(function, dict) else {}
    name, text = function.get("name"), function.get("arguments")
    name = name if isinstance(name, str) else ""
    # Some servers send the object itself.
    text = text if isinstance(text, str) else json.dumps(text)
    shown = {"name": _shown_name(name), "arguments": _clean(text[:_SHOWN_MOST])}
    known = {RUN_PYTHON} if agent.code else names.keys()
    if name not in known:
        offered = ", ".join(known) or "none"
        return {**shown, "error": f"there is no function {_shown_name(name)!r}; there is {offered}"[:2000]}
    try:
        args = _arguments(text)
    except ValueError as error:
        return {**shown, "error": f"the arguments are not a JSON object: {error}"}
    if not agent.code:
        return {"name": name, "tool": names[name].name, "args": args}
    code = args.get("code")
    if not isinstance(code, str) or len(args) != 1:
        return {**shown, "error": f'{RUN_PYTHON} takes one argument: {{"code": "…"}}'}
    return {"name": name, "code": code}


def _arguments(text: str) -> dict[str, Any]:
    """Raises ``ValueError``."""
    if len(text) > ARGUMENTS_MOST:
        raise ValueError(f"{len(text):,} characters, and {ARGUMENTS_MOST:,} at most")
    try:
        value = json.loads(text or "{}", parse_constant=refuse_constant)
        bounded(value)
    except (RecursionError, TooMuch):
        raise ValueError("too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"they are {type(value).__name__}")
    if problems := check_values(value):
        raise ValueError(f"{problems[0].pointer or '/'}: {problems[0].message}")
    return value


def _shown_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_FUNCTION_NAME_MOST] or "_"


def _clean(text: str) -> str:
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _function(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    about = {"name": name, "description": description, "parameters": dict(parameters)}
    return {"type": "function", "function": about}


def _described_code(agent: Agent, tools: Sequence[Tool], network: Sequence[tuple[str, int]]) -> str:
    reached = "there is no network"
    if network:
        reached = f"its HTTP proxy reaches {', '.join(f'{host}:{port}' for host, port in network)} and nothing else"
    lines = [
        f"Runs Python 3 in a new sandbox: nothing is kept between calls, {reached}, and only the standard "
        "library. You get the value of the last expression, and what was printed.",
    ]
    if agent.inputs:
        lines.append("Files: " + ", ".join(f"/inputs/{name}" for name in sorted(agent.inputs)))
    if tools:
        lines.append("Tools, after `import stockade_tools as tools` (each raises tools.ToolError):")
        lines += [signature(tool) for tool in tools]
    return "\n".join(lines)


def signature(tool: Tool) -> str:
    """A tool as a line of Python: ``tools.tickets.search(query: string, limit: integer = …)  # Finds tickets.``"""
    schema = tool.spec.get("input", {})
    properties = schema.get("properties") if isinstance(schema, dict) else None
    required = schema.get("required", []) if isinstance(schema, dict) else []
    shown = [
        f"{name}: {_kind(about)}" + ("" if name in required else " = …")
        for name, about in (properties.items() if isinstance(properties, dict) else ())
    ]
    words = " ".join(tool.description.split())[:_SHOWN_MOST]
    server, _, rest = tool.name.partition(".")
    if _IDENTIFIER.match(server) and _IDENTIFIER.match(rest):
        return f"tools.{server}.{rest}({', '.join(shown)})  # {words}"
    return f"tools.call({', '.join([repr(tool.name), *shown])})  # {words}"


def _kind(about: Any) -> str:
    kind = about.get("type", "any") if isinstance(about, dict) else "any"
    return kind if isinstance(kind, str) else "any"
