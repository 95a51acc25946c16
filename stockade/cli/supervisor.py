"""The process that ``stockade up`` becomes: it starts the control plane and the node and keeps them alive.

It stays as long as they do, so it is a program of its own, with the standard library only: the command line's and the
client's libraries would cost more memory than all the rest of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from stockade.cli import contexts
from stockade.cli.exits import Exit, Refusal, show
from stockade.cli.output import say

READY_SECONDS = 60.0
STOP_SECONDS = 15.0
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
STEADY_SECONDS = 60.0
POLL_SECONDS = 0.1
ANSWER_SECONDS = 5.0
PYTHON = (sys.executable, "-P")
"""``-P``: nothing is imported from the folder it was started in, which may be anybody's."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to start. Paths are absolute."""

    port: int
    state_dir: str
    data: dict[str, str]
    policy: str | None
    node: bool
    keep_context: bool

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def folder(self) -> Path:
        return Path(self.state_dir)

    def command(self) -> list[str]:
        """The command line of the process that carries it out."""
        return [*PYTHON, "-m", "stockade.cli.supervisor", json.dumps(asdict(self))]


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
    plan.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_stop)
    children: list[_Child] = []
    try:
        control = _Child("control plane", lambda: _start(plan, "control", _control_command(), _control_settings(plan)))
        children.append(control)
        control.tend()
        _await_ready(plan, control)
        key = (plan.folder / "control" / "admin.key").read_text().strip()
        if plan.keep_context:
            contexts.write(contexts.context_file(), plan.url, key)
        if plan.node:
            _keep(plan.folder / "join.token", _join_token(plan, key))
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
    return [*PYTHON, "-m", "controlplane"]


def _control_settings(plan: Plan) -> dict[str, str]:
    settings = {
        "STOCKADE_STATE_DIR": str(plan.folder / "control"),
        "STOCKADE_HOST": "127.0.0.1",
        "STOCKADE_PORT": str(plan.port),
    }
    return settings if plan.policy is None else {**settings, "STOCKADE_POLICY_DIR": plan.policy}


def _node_command(plan: Plan) -> list[str]:
    command = [*PYTHON, "-m", "stockade.cli.main", "node", "--url", plan.url]
    command += ["--state-dir", str(plan.folder / "node"), "--join-token-file", str(plan.folder / "join.token")]
    for name, path in plan.data.items():
        command += ["--data", f"{name}={path}"]
    return command


def _start(plan: Plan, name: str, command: list[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if key != "STOCKADE_API_KEY"}
    log = plan.folder / f"{name}.log"
    with log.open("ab") as stream:
        # A session of its own: Ctrl-C reaches this process only, which then ends the children in order.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env={**environment, **settings},
            start_new_session=True, preexec_fn=_dies_with(os.getpid()),
        )  # fmt: skip


def _dies_with(parent: int) -> Callable[[], None] | None:
    """What a child does first: have the kernel kill it when ``parent`` is gone, however that ended."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        # The wish outlives the exec. It is tied to the parent's thread, and `up` has one.
        if prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)

    return ask


def _await_ready(plan: Plan, control: _Child) -> None:
    deadline = time.monotonic() + READY_SECONDS
    log = plan.folder / "control.log"
    while time.monotonic() < deadline:
        if control.process is not None and control.process.poll() is not None:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise Refusal(
                Exit.FAILED, "the control plane did not start", where=str(log), why=tail, fix="stockade doctor"
            )
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _ask(plan, "GET", "/readyz")[0] == 200:
                return
        time.sleep(POLL_SECONDS)
    raise Refusal(Exit.TIMEOUT, "the control plane is not ready", where=str(log), fix=f"tail {log}")


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
        ("admin key", str(plan.folder / "control" / "admin.key")),
        ("context", context),
        ("logs", f"{plan.folder}/*.log"),
        ("stop", "Ctrl-C"),
    ):
        print(f"{label:<16} {text}".rstrip(), flush=True)


def main(argument: str) -> int:
    """Carry out a plan; the exit code."""
    try:
        return supervise(Plan(**json.loads(argument)))
    except Refusal as refusal:
        show(refusal)
        return int(refusal.code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
