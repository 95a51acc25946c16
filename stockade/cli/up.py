"""``stockade up``: control plane and node as child processes of this one, kept alive, on loopback.

    this process ─┬─ python -m controlplane          restarted if it dies; its state is its own
                  └─ python -m stockade.cli.main node   joins with a token made for it

SIGTERM and SIGINT end both children, the node first, so that it can hand back what it holds.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx2

from stockade.cli import contexts, inputs, places
from stockade.cli.exits import Exit, Refusal
from stockade.cli.output import say
from stockade.client import Client

READY_SECONDS = 60.0
STOP_SECONDS = 15.0
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
STEADY_SECONDS = 60.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to start."""

    port: int
    state_dir: Path
    data: dict[str, str]
    policy: Path | None
    node: bool
    keep_context: bool

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    def of(
        cls, *, port: int, state_dir: Path | None, data: list[str], policy: Path | None, node: bool, keep_context: bool
    ) -> Plan:
        """Checked before anything starts: the roots exist, the port is free."""
        roots = inputs.pairs(data, "path")
        for name, path in roots.items():
            if not Path(path).is_dir():
                raise Refusal(Exit.NOT_FOUND, "no such folder to export", where=f"--data {name}={path}")
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                why = error.strerror or str(error)
                raise Refusal(
                    Exit.FAILED, "the port is taken", where=f"127.0.0.1:{port}", why=why, fix="stockade up --port 0"
                ) from None
            port = int(listener.getsockname()[1])
        folder = places.state_dir(state_dir)
        return cls(port=port, state_dir=folder, data=roots, policy=policy, node=node, keep_context=keep_context)


class _Child:
    """One supervised process; started again after a pause that doubles while it keeps dying."""

    def __init__(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name = name
        self._start = start
        self._backoff = FIRST_BACKOFF_SECONDS
        self._again_at = 0.0
        self._started_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def tend(self) -> None:
        """Start it if it is due; notice if it died."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._again_at:
                self.process, self._started_at = self._start(), now
            return
        code = self.process.poll()
        if code is None:
            return
        if now - self._started_at > STEADY_SECONDS:
            self._backoff = FIRST_BACKOFF_SECONDS
        say(f"the {self.name} ended with {code}; starting it again in {self._backoff:g} s")
        self.process, self._again_at = None, now + self._backoff
        self._backoff = min(self._backoff * 2, LONGEST_BACKOFF_SECONDS)

    def stop(self) -> None:
        """Ask it to end, then make it."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Stop(BaseException):
    """A signal asked this process to end."""


def supervise(plan: Plan) -> int:
    """Run until SIGTERM or SIGINT. Returns 0; every child is gone by then."""
    plan.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_stop)
    children: list[_Child] = []
    try:
        control = _Child("control plane", lambda: _start(plan, "control", _control_command(), _control_settings(plan)))
        children.append(control)
        control.tend()
        _await_ready(plan, control)
        key = (plan.state_dir / "control" / "admin.key").read_text().strip()
        if plan.keep_context:
            contexts.write(contexts.context_file(), plan.url, key)
        if plan.node:
            with Client(plan.url, api_key=key) as client:
                token = client.join_token().token
            _keep(plan.state_dir / "join.token", token)
            node = _Child("node", lambda: _start(plan, "node", _node_command(plan), {}))
            children.append(node)
            node.tend()
        _banner(plan)
        while True:
            for child in children:
                child.tend()
            time.sleep(POLL_SECONDS)
    except _Stop:
        say("stopping")
        return int(Exit.OK)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        for child in reversed(children):
            child.stop()


def _raise_stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stop


def _control_command() -> list[str]:
    return [sys.executable, "-m", "controlplane"]


def _control_settings(plan: Plan) -> dict[str, str]:
    settings = {
        "STOCKADE_STATE_DIR": str(plan.state_dir / "control"),
        "STOCKADE_HOST": "127.0.0.1",
        "STOCKADE_PORT": str(plan.port),
    }
    return settings if plan.policy is None else {**settings, "STOCKADE_POLICY_DIR": str(plan.policy.absolute())}


def _node_command(plan: Plan) -> list[str]:
    command = [sys.executable, "-m", "stockade.cli.main", "node", "--url", plan.url]
    command += ["--state-dir", str(plan.state_dir / "node"), "--join-token-file", str(plan.state_dir / "join.token")]
    for name, path in plan.data.items():
        command += ["--data", f"{name}={Path(path).absolute()}"]
    return command


def _start(plan: Plan, name: str, command: list[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if key != "STOCKADE_API_KEY"}
    log = plan.state_dir / f"{name}.log"
    with log.open("ab") as stream:
        # A session of its own: Ctrl-C reaches this process only, which then ends the children in order.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env={**environment, **settings},
            start_new_session=True,
        )  # fmt: skip


def _await_ready(plan: Plan, control: _Child) -> None:
    deadline = time.monotonic() + READY_SECONDS
    log = plan.state_dir / "control.log"
    while time.monotonic() < deadline:
        if control.process is not None and control.process.poll() is not None:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise Refusal(
                Exit.FAILED, "the control plane did not start", where=str(log), why=tail, fix="stockade doctor"
            )
        try:
            if httpx2.get(f"{plan.url}/readyz", timeout=2.0, trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(POLL_SECONDS)
    raise Refusal(Exit.TIMEOUT, "the control plane is not ready", where=str(log), fix=f"tail {log}")


def _keep(path: Path, value: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(value + "\n")


def _banner(plan: Plan) -> None:
    roots = "  ".join(f"data://{name}/" for name in plan.data) or "none (--data NAME=PATH)"
    context = str(contexts.context_file()) if plan.keep_context else "not written"
    for label, text in (
        ("Stockade is up", ""),
        ("API", f"{plan.url}/v1"),
        ("OpenAPI", f"{plan.url}/openapi.json"),
        ("workflow schema", f"{plan.url}/schema/workflow.json"),
        ("health", f"{plan.url}/readyz"),
        ("data", roots if plan.node else "no node"),
        ("admin key", str(plan.state_dir / "control" / "admin.key")),
        ("context", context),
        ("logs", f"{plan.state_dir}/*.log"),
        ("stop", "Ctrl-C"),
    ):
        print(f"{label:<16} {text}".rstrip(), flush=True)
