"""MCP servers: declare one, see what it offers, accept tools, call one."""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from stockade.cli import inputs
from stockade.cli.exits import Exit, Refusal, of_run, sent, visible
from stockade.cli.output import DATA_FORMS, Format, console, say, show_value
from stockade.cli.watching import follow
from stockade.client import Client
from stockade.client.models import McpServer, McpTool

EFFECTS = ("none", "stageable", "immediate")
_LIST_SECONDS = 180.0


def process(
    command: Sequence[str], env: Sequence[str], mounts: Sequence[str], tier: str, image: str, memory: str
) -> dict[str, Any]:
    """The declaration of a stdio server."""
    if not command:
        fix = "stockade tool add NAME --stdio -- COMMAND…"
        raise Refusal(Exit.USAGE, "a stdio server needs its command", fix=fix)
    roots = {name: root if "://" in root else f"data://{root}" for name, root in inputs.pairs(mounts, "root").items()}
    declared = {"command": list(command), "env": inputs.pairs(env, "value"), "mounts": roots}
    return {"process": {**declared, "tier": tier, "image": image, "memory": memory}}


def endpoint(url: str, headers: Sequence[str], secrets: Sequence[str]) -> dict[str, Any]:
    """The declaration of a Streamable HTTP server; a secret is ``HEADER=SECRET`` or ``HEADER=FORMAT SECRET``."""
    bound = []
    for header, value in inputs.pairs(secrets, "secret").items():
        prefix, _, name = value.rpartition(" ")
        bound.append({"name": name, "header": header, "format": f"{prefix} {{}}" if prefix else "{}"})
    return {"endpoint": {"url": url, "headers": inputs.pairs(headers, "value")}, "secrets": bound}


def add(client: Client, name: str, declared: Mapping[str, Any], source: str) -> int:
    """Declare a server and have a node list it."""
    with sent(source):
        client.put_mcp_server(name, declared)
    say(f"declared {name}; a node asks it for its tools")
    server = listed(client, name)
    waiting = [one for one in server.tools if one.state != "reviewed"]
    say(f"{name} offers {len(server.tools)} tools, {len(waiting)} of them not reviewed: nothing can call those")
    if waiting:
        say(f"look at them and accept them:  stockade tool review {name}")
    return int(Exit.OK)


def listed(client: Client, name: str) -> McpServer:
    """The server after a node has asked it again."""
    secrets = [one["name"] for one in client.mcp_server(name).secrets]
    step = {"id": "list", "tool": "builtin.mcp.list", "args": {"server": name}, "secrets": secrets}
    _performed(client, "list-mcp-tools", step, f"MCP server {name}", _LIST_SECONDS)
    return client.mcp_server(name)


def review(
    client: Client,
    name: str,
    *,
    yes: bool,
    only: Sequence[str],
    effects: Sequence[str],
    critical: Sequence[str],
    form: Format,
) -> int:
    """Show what waits for a review, and accept it: asked one by one on a terminal, all of it with ``yes``."""
    server = listed(client, name)
    if form in DATA_FORMS:
        show_value(server.model_dump(mode="json"), form)
    given = _effects(effects)
    decides = {tool: words.split(",") for tool, words in inputs.pairs(critical, "argument").items()}
    for flag, tools in (("--only", only), ("--effect", given), ("--critical", decides)):
        _check_offered(server, flag, tools)
    chosen = [one for one in server.tools if one.definition and (not only or one.tool in only or one.name in only)]
    # What is named is decided anew; else only what nobody has accepted yet.
    waiting = [one for one in chosen if one.state != "reviewed" or only or one.tool in given or one.tool in decides]
    accepted: list[dict[str, Any]] = []
    for tool in waiting:
        if form not in DATA_FORMS:
            print("\n".join(map(visible, described(tool))), end="\n\n")
        effect = given.get(tool.tool) or given.get("*") or (tool.reviewed or {}).get("effect") or "immediate"
        if yes or _accepts(tool):
            known = (tool.reviewed or {}).get("critical_args")
            wanted = decides.get(tool.tool, known)
            accepted.append({"name": tool.tool, "digest": tool.digest, "effect": effect, "critical_args": wanted})
    for one in server.left_out:
        say(f"left out: {one['name']}: {one['why']}")
    for gone in (one for one in server.tools if one.state == "missing"):
        say(f"{gone.name} was accepted and is not offered any more; `stockade tool rm {gone.name}` forgets it")
    if accepted:
        with sent(name):
            client.review_mcp_server(name, accepted)
    say(f"{name}: {len(accepted)} of {len(waiting)} accepted" if waiting else f"{name}: nothing waits for a review")
    if len(accepted) < len(waiting):
        if not sys.stdin.isatty():
            say(f"accept what you have read:  stockade tool review {name} --yes [--effect TOOL=none]")
        return int(Exit.WAITS_FOR_PERSON)
    return int(Exit.OK)


def test(client: Client, name: str, given: Sequence[str], timeout: float, form: Format) -> int:
    """One call, as the caller, under policy and in the journal: a run of one step."""
    found = next((one for one in client.tools() if one.name == name), None)
    secrets = [] if found is None else [one["name"] for one in found.secrets]
    if found is not None and found.kind == "mcp":
        secrets = [one["name"] for one in client.mcp_server(name.partition(".")[0]).secrets]
    step = {"id": "call", "tool": name, "args": _literal(inputs.run_input(given)), "secrets": secrets}
    value = _performed(client, "tool-test", step, name, timeout)
    show_value(value, Format.JSON if form in (Format.TABLE, Format.WIDE, Format.NAME) else form)
    return int(Exit.OK)


def _performed(client: Client, workflow: str, step: dict[str, Any], where: str, seconds: float) -> Any:
    document = {
        "stockade": "1",
        "name": workflow,
        "version": "1",
        "steps": [step],
        "output": {"value": f"${{steps.{step['id']}.output}}"},
    }
    with sent(where):
        submitted = client.submit(document)
    try:
        done = follow(client, submitted.id, console(stderr=True), False, time.monotonic() + seconds, silent=True)
    except TimeoutError:
        client.cancel(submitted.id, "nobody waits for it any more")
        fix = f"stockade explain {submitted.id}"
        raise Refusal(Exit.TIMEOUT, f"no end within {seconds:g} s", where=where, fix=fix) from None
    if done.status != "completed":
        error = done.error
        what = f"the call {done.status}" + (f": {error.type}" if error else "")
        why = error.message if error else ""
        raise Refusal(of_run(done), what, where=f"{where} in {done.id}", why=why, fix=f"stockade explain {done.id}")
    return done.output["value"]


def _literal(value: Any) -> Any:
    """Arguments as they are: nothing in them is an expression."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, list):
        return [_literal(one) for one in value]
    if isinstance(value, dict):
        return {key: _literal(one) for key, one in value.items()}
    return value


def _check_offered(server: McpServer, flag: str, named: Iterable[str]) -> None:
    """A misspelt tool would leave another as it is. Raises: Refusal."""
    offered = {one.tool for one in server.tools if one.definition}
    known = {"*", *offered, *(f"{server.name}.{one}" for one in offered)}
    for tool in named:
        if tool not in known:
            near = difflib.get_close_matches(tool, sorted(offered), n=1)
            fix = f"did you mean {near[0]}?" if near else f"`stockade tool review {server.name}` lists them"
            raise Refusal(Exit.USAGE, f"{server.name} offers no tool of this name", where=f"{flag} {tool}", fix=fix)


def _effects(given: Sequence[str]) -> dict[str, str]:
    effects = inputs.pairs(given, "effect")
    for tool, effect in effects.items():
        if effect not in EFFECTS:
            fix = f"--effect {tool}={'|'.join(EFFECTS)}"
            raise Refusal(Exit.USAGE, "not an effect", where=f"{tool}={effect}", fix=fix)
    return effects


def _accepts(tool: McpTool) -> bool:
    if not sys.stdin.isatty():
        return False
    import typer

    return typer.confirm(f"accept {tool.name}?", default=False, err=True)


def described(tool: McpTool) -> Iterator[str]:
    """A tool for the person who reviews it: everything that is pinned, and so all that a model may ever be told of it.

    What the server says is quoted, its hints are called hints.
    """
    yield f"{tool.name}  [{tool.state}]  {tool.digest}"
    if tool.difference:
        yield "  changed since review:"
        yield from (f"    {line}" for line in tool.difference.splitlines())
    definition = tool.definition or {}
    yield f"  name: {json.dumps(definition.get('name'), ensure_ascii=False)}"
    if not definition.get("description"):
        yield "  no description: a model is told the title in its place, or else the name"
    for field in ("title", "description"):
        if definition.get(field):
            yield f"  the server says, as {field}:"
            yield from (f"    | {line}" for line in str(definition[field]).splitlines())
    yield f"  arguments: {json.dumps(definition.get('inputSchema'), ensure_ascii=False)}"
    if definition.get("outputSchema") is not None:
        yield f"  answer: {json.dumps(definition['outputSchema'], ensure_ascii=False)}"
    if definition.get("annotations"):
        yield f"  its hints, which promise nothing: {json.dumps(definition['annotations'], ensure_ascii=False)}"
    effect = (tool.reviewed or {}).get("effect")
    yield f"  effect: {effect or 'immediate, unless you say --effect ' + tool.tool + '=none'}"
