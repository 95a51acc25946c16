"""What ``stockade model`` does."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stockade.cli import inputs
from stockade.cli.exits import Exit, Refusal, sent, visible
from stockade.cli.output import DATA_FORMS, Format, age, say, show_list, show_table, show_value
from stockade.client import Client
from stockade.client.models import ModelDeployment, ModelReplica

POLL_SECONDS = 0.5
_SIZE = re.compile(r"([0-9]+)(Ki|Mi|Gi|Ti)?\Z")
_UNITS = {None: 1, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}


def declared(file: Path | None, name: str | None, flags: dict[str, Any]) -> tuple[str, dict[str, Any], str]:
    """Name, specification, and where it came from. Raises: Refusal."""
    if file is None:
        if name is None:
            fix = "stockade model apply FILE      or: stockade model apply --name NAME --engine llamacpp --source MODEL"
            raise Refusal(Exit.USAGE, "which deployment?", fix=fix)
        return name, flags, f"--name {name}"
    if flags:
        given = ", ".join(sorted(flags))
        raise Refusal(Exit.USAGE, "a file or flags, not both", where=str(file), why=f"also given: {given}")
    if not file.is_file():
        raise Refusal(Exit.NOT_FOUND, "no such file", where=str(file))
    spec = inputs.workflow(str(file))
    if not isinstance(spec, dict):
        raise Refusal(Exit.USAGE, "not a deployment file", where=str(file), fix='{"name": "small", "engine": …}')
    own = spec.pop("name", None)
    wanted = name or own
    if not isinstance(wanted, str):
        raise Refusal(Exit.USAGE, "the deployment has no name", where=str(file), fix='add "name": "small", or --name')
    return wanted, spec, str(file)


def apply(client: Client, name: str, spec: dict[str, Any], source: str, *, wait: float | None, form: Format) -> int:
    """Send it; with ``wait`` seconds, return when it is ready as specified, or say what it waits for."""
    with sent(source):
        made = client.put_model_deployment(name, spec)
    if wait is None:
        _shown(made, form)
        return int(Exit.OK)
    deadline, said = time.monotonic() + wait, ""
    while not made.is_done:
        unmet = made.unmet
        now = _progress(made)
        if now != said:
            say(now)
            said = now
        if time.monotonic() >= deadline:
            code = Exit.NOT_PLACED if unmet is not None and unmet.type == "Placed" else Exit.TIMEOUT
            why = unmet.message if unmet is not None else "nothing was said of it yet"
            fix = (unmet.fix if unmet is not None else "") or f"stockade model logs {name}"
            raise Refusal(code, f"the model is not ready after {wait:g} s", where=name, why=why, fix=fix)
        time.sleep(POLL_SECONDS)
        made = client.model_deployment(name)
    _shown(made, form)
    return int(Exit.OK)


def ls(client: Client, form: Format) -> None:
    """List them."""
    columns: list[tuple[str, Any]] = [
        ("MODEL", lambda one: one.name),
        ("ENGINE", lambda one: one.spec.get("engine", "")),
        ("SOURCE", lambda one: one.spec.get("source") or one.spec.get("external", {}).get("url", "-")),
        ("READY", lambda one: f"{one.status.ready}/{one.status.desired}"),
        ("STATE", _state),
        ("ALIASES", lambda one: ", ".join(one.spec.get("aliases", [])) or "-"),
        ("CHANGED", lambda one: age(one.updated_at)),
    ]
    wide = [("WHY", lambda one: one.unmet.message if one.unmet is not None else "-")]
    show_list(client.model_deployments(), form, columns, wide)


def get(client: Client, name: str, form: Format) -> None:
    """Show one."""
    _shown(client.model_deployment(name), form)


def logs(client: Client, name: str, replica: str | None) -> None:
    """Print the end of a replica's log; on a terminal without what could steer it."""
    told = client.model_log(name, replica)
    if told.offset:
        say(f"… {told.offset:,} bytes before this")
    text = "\n".join(visible(line) for line in told.text.splitlines()) if sys.stdout.isatty() else told.text
    print(text.rstrip("\n"))


def arguments(given: Sequence[str] | None) -> dict[str, Any] | None:
    """``NAME=VALUE`` with the value as JSON where it is a number or truth value, else text; ``NAME`` is true."""
    found: dict[str, Any] = {}
    for one in given or ():
        name, equals, text = one.partition("=")
        value: Any = True
        if equals:
            try:
                value = json.loads(text)
            except ValueError:
                value = text
            value = value if isinstance(value, bool | int | float) else text
        found[name.removeprefix("--")] = value
    return found or None


def labels(given: Sequence[str] | None) -> dict[str, str] | None:
    """``NAME=VALUE``."""
    return inputs.pairs(given, "value") if given else None


def external(url: str | None, model: str | None, secret: str | None) -> dict[str, str] | None:
    """What was said of an external service."""
    given = {"url": url, "model": model, "secret": secret}
    return {name: value for name, value in given.items() if value is not None} or None


def memory_bytes(text: str | None) -> int | None:
    """``4Gi``, or bytes. Raises: Refusal."""
    if text is None:
        return None
    found = _SIZE.match(text)
    if found is None:
        raise Refusal(Exit.USAGE, "not an amount of memory", where=f"--memory {text}", fix="--memory 4Gi")
    return int(found[1]) * _UNITS[found[2]]


def _state(one: ModelDeployment) -> str:
    if one.is_done:
        return "ready"
    unmet = one.unmet
    return "changing" if unmet is None or unmet.type == "Reconciled" else unmet.reason


def _progress(one: ModelDeployment) -> str:
    unmet = one.unmet
    if unmet is not None and unmet.type == "Placed":
        return f"{one.name} waits: {unmet.message}" + (f" ({unmet.fix})" if unmet.fix else "")
    states = ", ".join(f"{replica.id} {replica.state}{_said(replica)}" for replica in one.status.replicas)
    return f"{one.name}: {one.status.ready} of {one.status.desired} ready" + (f"; {states}" if states else "")


def _said(replica: ModelReplica) -> str:
    return f" ({replica.detail})" if replica.state == "failed" and replica.detail else ""


def _shown(one: ModelDeployment, form: Format) -> None:
    if form is Format.NAME:
        print(one.name)
    elif form in DATA_FORMS:
        show_value(one.model_dump(mode="json"), form)
    else:
        what = one.spec.get("source") or one.spec.get("external", {}).get("url", "")
        print(visible(f"{one.name}  {one.spec.get('engine', '')} {what}  {_state(one)}"))
        for condition in [] if one.is_done else one.conditions:
            mark = "✓" if condition.status else "✗"
            print(visible(f"{mark} {condition.type:<11} {condition.reason} {condition.message}".rstrip()))
            if condition.fix and not condition.status:
                print(visible(f"  FIX {condition.fix}"))
        rows = [
            [replica.id, replica.node_name or replica.url or "-", replica.state, f"{replica.running}+{replica.waiting}",
             str(replica.slots), str(replica.restarts), visible(replica.detail) or "-"]
            for replica in one.status.replicas
        ]  # fmt: skip
        if rows:
            show_table(["REPLICA", "NODE", "STATE", "CALLS", "SLOTS", "RESTARTS", "DETAIL"], rows)
