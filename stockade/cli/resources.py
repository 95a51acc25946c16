"""Nodes, secrets, tools, workflows, artifacts and the context, listed and changed."""

from __future__ import annotations

import getpass
import json
import re
import sys
from pathlib import Path
from typing import Any

from stockade.cli import contexts, inputs
from stockade.cli.exits import Exit, Refusal, sent
from stockade.cli.output import Format, age, say, show_list, show_table, show_value, size
from stockade.client import Client, Tool

_TOOL_NAME = re.compile(r"[a-z][a-z0-9_-]*(\.[A-Za-z][A-Za-z0-9_-]*)+\Z")
Columns = list[tuple[str, Any]]


def nodes(client: Client, form: Format) -> None:
    """List nodes."""

    def tiers(node: Any) -> str:
        return ", ".join(
            f"{name} ({state.strength}: {' '.join(one.image for one in state.images if one.ready) or 'preparing'})"
            for name, state in node.tiers.items()
        )

    def gpus(node: Any) -> str:
        if not node.gpus:
            return "-"
        free = sum(one.holder is None for one in node.gpus)
        kinds = ", ".join(dict.fromkeys(f"{one.name}{' (fake)' if one.fake else ''}" for one in node.gpus))
        return f"{free} free of {len(node.gpus)}: {kinds}"

    columns: Columns = [
        ("NODE", lambda node: node.name or node.id),
        ("STATUS", lambda node: node.status),
        ("TIERS", lambda node: tiers(node) or "-"),
        ("DATA", lambda node: ", ".join(root.name for root in node.data) or "-"),
        ("GPUS", gpus),
        ("RUNNING", lambda node: node.attempts),
        ("SEEN", lambda node: age(node.last_seen_at)),
    ]
    wide: Columns = [
        ("ID", lambda node: node.id),
        ("ABSENT", lambda node: "; ".join(f"{tier}: {why}" for tier, why in node.absent.items()) or "-"),
    ]
    show_list(client.nodes(), form, columns, wide)


def join_token(client: Client, form: Format) -> None:
    """Print a token; on a terminal, the line to paste."""
    made = client.join_token()
    if form in (Format.JSON, Format.JSONL, Format.YAML):
        show_value(made.model_dump(mode="json"), form)
        return
    print(made.token)
    if sys.stdout.isatty():
        say(f"paste on the node's host:  echo TOKEN | stockade node --url {client.url} --join -")


def set_secret(client: Client, name: str) -> None:
    """Store a value that never is an argument, hence in no process list and no shell history."""
    value = getpass.getpass(f"value of {name}: ") if sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
    if not value:
        raise Refusal(Exit.USAGE, "the value is empty", where=name, fix=f"stockade secret set {name} < FILE")
    client.set_secret(name, value)
    say(f"stored {name}; no rule grants it until policy binds it to a tool")


def secrets(client: Client, form: Format) -> None:
    """List names."""
    columns: Columns = [("SECRET", lambda one: one.name), ("UPDATED", lambda one: age(one.updated_at))]
    show_list(client.secrets(), form, columns)


def add_tool(client: Client, file: Path, name: str | None) -> int:
    """Register the tool or the MCP server that a file declares; ``name`` where the file has none."""
    declared = inputs.workflow(str(file))
    if not isinstance(declared, dict):
        raise Refusal(Exit.USAGE, "not a tool file", where=str(file), fix='{"kind": "http", …}; see docs/workflow.md')
    own = declared.pop("name", None)
    wanted = name or own
    if not isinstance(wanted, str):
        raise Refusal(Exit.USAGE, "the tool has no name", where=str(file), fix='add "name": "server.tool"')
    if name is not None and own not in (None, name):
        why = f"the file says {own!r}, the command says {name!r}"
        raise Refusal(Exit.USAGE, "which name?", where=str(file), why=why, fix=f"stockade tool add {file}")
    if declared.get("kind") == "mcp":
        from stockade.cli import mcp_tools

        return mcp_tools.add(client, wanted, declared, str(file))
    if not _TOOL_NAME.match(wanted):
        why = "a tool is named server.tool: letters, digits, - and _, the first a small letter, and a dot between"
        raise Refusal(Exit.USAGE, "not a tool's name", where=f"{file} {wanted!r}", why=why, fix='"name": "web.search"')
    with sent(str(file)):
        made = client.put_tool(wanted, declared)
    say(f"{made.name} {made.digest}")
    return int(Exit.OK)


def tools(client: Client, form: Format) -> None:
    """List tools, also those of MCP servers that nothing may call yet."""
    offered = {one.name: one for server in client.mcp_servers() for one in server.tools}
    known = client.tools()
    unreviewed = [
        Tool(name=one.name, kind="mcp", description=str((one.definition or {}).get("description") or ""))
        for one in offered.values()
        if one.state == "unreviewed"
    ]
    columns: Columns = [
        ("TOOL", lambda one: one.name),
        ("KIND", lambda one: one.kind),
        ("EFFECT", lambda one: one.effect or "-"),
        ("STATE", lambda one: offered[one.name].state if one.name in offered else "-"),
        ("DESCRIPTION", lambda one: " ".join(one.description.split())[:100]),
    ]
    shown = sorted([*known, *unreviewed], key=lambda one: one.name)
    show_list(shown, form, columns, [("DIGEST", lambda one: one.digest or "-")])


def add_workflow(client: Client, file: Path) -> None:
    """Publish the workflow a file holds."""
    definition = inputs.workflow(str(file))
    if not isinstance(definition, dict):
        raise Refusal(Exit.USAGE, "not a workflow file", where=str(file))
    with sent(str(file)):
        made = client.publish(definition)
    say(f"{made.name}@{made.version} {made.digest}")


def workflows(client: Client, form: Format) -> None:
    """List published workflows."""
    columns: Columns = [
        ("WORKFLOW", lambda one: f"{one.name}@{one.version}"),
        ("DIGEST", lambda one: one.digest),
        ("AGE", lambda one: age(one.created_at)),
    ]
    show_list(client.workflows(), form, columns)


def artifacts(client: Client, run: str | None, form: Format) -> None:
    """List artifacts."""
    run_id = inputs.find_run(client, run) if run else None
    columns: Columns = [
        ("ARTIFACT", lambda one: one.id),
        ("NAME", lambda one: one.name),
        ("SIZE", lambda one: size(one.size_bytes)),
        ("TYPE", lambda one: one.media_type),
        ("STEP", lambda one: one.path or "-"),
    ]
    wide: Columns = [("RUN", lambda one: one.run or "-"), ("DIGEST", lambda one: one.digest)]
    show_list(client.artifacts(run_id), form, columns, wide)


def get_artifact(client: Client, artifact: str, file: Path | None) -> None:
    """Write the bytes to a file, or to standard output unless that is a terminal and they are not text."""
    content = client.artifact_content(artifact)
    if file is not None:
        file.write_bytes(content)
        say(f"{file}: {size(len(content))}")
    elif sys.stdout.isatty() and b"\x00" in content:
        raise Refusal(Exit.USAGE, "not text", where=artifact, fix=f"stockade artifact get {artifact} -O FILE")
    else:
        sys.stdout.buffer.write(content)


def show_context(form: Format) -> None:
    """Print the context; the key itself is not shown."""
    found = contexts.resolve(None, None)
    value = {"url": found.url, "url_from": found.url_from, "key": bool(found.api_key), "key_from": found.key_from}
    if form in (Format.TABLE, Format.WIDE, Format.NAME):
        key = f"set, from {found.key_from}" if found.api_key else "none"
        show_table(["URL", "FROM", "KEY"], [[found.url, found.url_from, key]])
    else:
        print(json.dumps(value)) if form is Format.JSONL else show_value(value, form)


def set_context(url: str | None, api_key: str | None) -> None:
    """Keep a server and a key; without ``url`` the server that is used now."""
    key = sys.stdin.readline().strip() if api_key == "-" else api_key
    path = contexts.context_file()
    server = contexts.checked_url(url, "--url") if url else contexts.resolve(None, None).url
    contexts.write(path, server, key)
    say(f"kept in {path}: {server}, {'with' if key else 'without'} a key")
