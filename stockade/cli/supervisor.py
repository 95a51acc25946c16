"""The process that ``stockade up`` becomes: it starts the control plane and the node and keeps them alive.

It stays as long as they do, so it is a program of its own, with the standard library only: the command line's and the
client's libraries would cost more memory than all the rest of it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from controlplane.state_lock import AlreadyRunning, hold_state
from stockade.cli import contexts, opa_child
from stockade.cli.children import Child
from stockade.cli.exits import Exit, Refusal, show
from stockade.cli.output import say

READY_SECONDS = 60.0
JOIN_SECONDS = 20.0
DRAIN_SECONDS = 10.0
POLL_SECONDS = 0.1
JOIN_POLL_SECONDS = 1.0
ANSWER_SECONDS = 5.0
PYTHON = (sys.executable, "-P")
"""``-P``: nothing is imported from the folder it was started in, which may be anybody's."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to start. Paths are absolute."""

    port: int
    state_dir: str
    data: dict[str, str]
    policy: str | None
    private_hosts: str
    """As STOCKADE_PRIVATE_HOSTS takes them; empty leaves the variable as it is."""
    node: bool
    keep_context: bool
    opa: str | None = None
    """The OPA program to start; None: the embedded engine, or an OPA elsewhere."""
    opa_url: str | None = None
    opa_token_file: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def folder(self) -> Path:
        return Path(self.state_dir)

    def command(self) -> list[str]:
        """The command line of the process that carries it out."""
        return [*PYTHON, "-m", "stockade.cli.supervisor", json.dumps(asdict(self))]


class _Stop(BaseException):
    """A signal asked this process to end."""


def supervise(plan: Plan) -> int:
    """Run until SIGTERM or SIGINT. Returns 0; every child is gone by then. Raises ``Refusal``."""
    try:
        # No patience: if the last one was killed, the kernel has released this by now; the children wait for theirs.
        with hold_state(plan.folder, plan.url, patience_seconds=0):
            plan.folder.chmod(0o700)  # also one that was there before
            return _supervise(plan)
    except AlreadyRunning as running:
        raise already_up(running) from None


def already_up(running: AlreadyRunning) -> Refusal:
    """What the second ``stockade up`` of a state folder says."""
    return Refusal(
        Exit.ALREADY_RUNNING,
        "Stockade is already running",
        where=str(running.folder),
        why=str(running),
        fix=f"use it, end it with `kill {running.pid}`, or start another with --state-dir DIR --port 0",
    )


def _supervise(plan: Plan) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_stop)
    children: list[Child] = []
    key = ""
    try:
        control = Child("control plane", _control_command(), plan.folder / "control.log", _control_settings(plan))
        children.append(control)
        if plan.opa is not None:
            children.append(_opa(plan, plan.opa))
        _await_ready(plan, children)
        key = (plan.folder / "control" / "admin.key").read_text().strip()
        if plan.keep_context:
            contexts.write(contexts.context_file(), plan.url, key)
        joined = False
        if plan.node:
            _keep(plan.folder / "join.token", _join_token(plan, key))
            children.append(Child("node", _node_command(plan), plan.folder / "node.log", {}))
            joined = _await_node(plan, key, children)
        _banner(plan, joined)
        while True:
            for child in children:
                child.tend()
            if plan.node and not joined and (joined := _node_is_ready(plan, key)):
                say("the node has joined")
            time.sleep(POLL_SECONDS if joined or not plan.node else JOIN_POLL_SECONDS)
    except _Stop:
        _stop(plan, key, children)
        return int(Exit.OK)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        for child in reversed(children):
            child.stop()


def _stop(plan: Plan, key: str, children: list[Child]) -> None:
    """End the children in order, the node first; a second signal kills them."""
    try:
        held = _attempts(plan, key)
        what = f"draining {held} attempt{'' if held == 1 else 's'} for up to {DRAIN_SECONDS:g} s; " if held else ""
        say(f"stopping: {what}Ctrl-C again to force")
        for child in reversed(children):
            child.stop()
    except _Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        say("forced: what was running is taken up by the next start")
        for child in reversed(children):
            child.kill()


def _raise_stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stop


def _control_command() -> list[str]:
    return [*PYTHON, "-m", "controlplane"]


def _control_settings(plan: Plan) -> dict[str, str]:
    settings = {
        "STOCKADE_STATE_DIR": str(plan.folder / "control"),
        "STOCKADE_HOST": "127.0.0.1",
        "STOCKADE_PORT": str(plan.port),
    }
    if plan.policy is not None:
        settings["STOCKADE_POLICY_DIR"] = plan.policy
    if plan.private_hosts:
        settings["STOCKADE_PRIVATE_HOSTS"] = plan.private_hosts
    if plan.opa is not None:
        url, token = f"unix://{opa_child.socket(plan.folder)}", str(plan.folder / "opa.token")
    elif plan.opa_url is not None:
        url, token = plan.opa_url, plan.opa_token_file or ""
    else:
        return settings
    return {**settings, "STOCKADE_POLICY_ENGINE": "opa", "STOCKADE_OPA_URL": url, "STOCKADE_OPA_TOKEN_FILE": token}


def _opa(plan: Plan, program: str) -> Child:
    token = opa_child.ensure_token(plan.folder / "opa.token")
    command = opa_child.command(Path(program), opa_child.socket(plan.folder))
    settings = opa_child.environment(plan.url, token)
    return Child("policy engine", command, plan.folder / "opa.log", settings, bare=True)


def _node_command(plan: Plan) -> list[str]:
    command = [*PYTHON, "-m", "stockade.cli.main", "node", "--url", plan.url]
    command += ["--state-dir", str(plan.folder / "node"), "--join-token-file", str(plan.folder / "join.token")]
    command += ["--drain-seconds", f"{DRAIN_SECONDS:g}", "--lifeline", str(os.getpid())]
    for name, path in plan.data.items():
        command += ["--data", f"{name}={path}"]
    return command


def _await_ready(plan: Plan, children: list[Child]) -> None:
    """Start the first, the control plane; when it answers the others, which ask it; wait until all it needs works."""
    control, *others = children
    control.tend()
    deadline = time.monotonic() + READY_SECONDS
    where = str(control.log)
    while time.monotonic() < deadline:
        for child in children:
            if child.ended():
                child.check_alone()
                said, why = f"the {child.name} did not start", child.reason()
                raise Refusal(Exit.FAILED, said, where=str(child.log), why=why, fix=f"tail {child.log}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _ask(plan, "GET", "/readyz")[0] == 200:
                return
            for child in others:
                if child.process is None:
                    child.tend()
        time.sleep(POLL_SECONDS)
    raise Refusal(Exit.TIMEOUT, "the control plane is not ready", where=where, fix=f"tail {where}")


def _await_node(plan: Plan, key: str, children: list[Child]) -> bool:
    """Whether the node has joined, after a while or when it fails for the first time."""
    deadline = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < deadline:
        failed = any(child.ended() for child in children)
        for child in children:
            child.tend()
        if failed or _node_is_ready(plan, key):
            return not failed
        time.sleep(POLL_SECONDS)
    return False


def _node_is_ready(plan: Plan, key: str) -> bool:
    """Whether the node of this state folder has called the control plane since that was started."""
    with contextlib.suppress(OSError):
        identity = (plan.folder / "node" / "identity").read_text().strip()
        return any(node["name"] == identity and node["status"] == "ready" for node in _nodes(plan, key))
    return False


def _attempts(plan: Plan, key: str) -> int:
    """How many attempts the node of this state folder holds; 0 where nobody can say."""
    with contextlib.suppress(OSError):
        identity = (plan.folder / "node" / "identity").read_text().strip()
        return sum(int(node["attempts"]) for node in _nodes(plan, key) if node["name"] == identity)
    return 0


def _nodes(plan: Plan, key: str) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
        status, body = _ask(plan, "GET", "/v1/nodes", key)
        if status == 200:
            return list(json.loads(body)["data"])
    return []


def _ask(plan: Plan, method: str, path: str, key: str | None = None) -> tuple[int, bytes]:
    """Status and body. Raises OSError or HTTPException where nobody answers."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    connection = http.client.HTTPConnection("127.0.0.1", plan.port, timeout=ANSWER_SECONDS)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _join_token(plan: Plan, key: str) -> str:
    status, body = _ask(plan, "POST", "/v1/nodes/join-tokens", key)
    if status >= 300:
        fix = f"tail {plan.folder / 'control.log'}"
        raise Refusal(Exit.FAILED, "the control plane gave no join token", why=f"HTTP {status}", fix=fix)
    return str(json.loads(body)["token"])


def _keep(path: Path, value: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(value + "\n")


def _banner(plan: Plan, joined: bool) -> None:
    roots = "  ".join(f"data://{name}/" for name in plan.data) or "none (--data NAME=PATH)"
    node = "joined" if joined else f"still joining; see {plan.folder / 'node.log'}"
    context = str(contexts.context_file()) if plan.keep_context else "not written"
    for label, text in (
        ("Stockade is up", ""),
        ("API", f"{plan.url}/v1"),
        ("OpenAPI", f"{plan.url}/openapi.json"),
        ("workflow schema", f"{plan.url}/schema/workflow.json"),
        ("health", f"{plan.url}/readyz"),
        ("node", node if plan.node else "none (--no-node)"),
        ("data", roots if plan.node else "no node"),
        ("policy engine", f"OPA, {plan.opa or plan.opa_url}" if plan.opa or plan.opa_url else "embedded"),
        ("admin key", str(plan.folder / "control" / "admin.key")),
        ("context", context),
        ("logs", f"{plan.folder}/*.log"),
        ("stop", "Ctrl-C"),
    ):
        print(f"{label:<16} {text}".rstrip(), flush=True)


def main(argument: str) -> int:
    """Carry out a plan; the exit code."""
    os.umask(0o077)  # what is kept here is nobody else's to read
    try:
        return supervise(Plan(**json.loads(argument)))
    except Refusal as refusal:
        show(refusal)
        return int(refusal.code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
