"""A real Stockade for acceptance tests: a control plane process and node processes, which a test may kill.

Processes are started as a person would start them, on free loopback ports, with state below one folder. Killing is
SIGKILL of that process alone; starting again uses the same port and state, as a supervisor would.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx2

from stockade.cli import places
from stockade.client import Client

REPOSITORY = Path(__file__).resolve().parents[2]
READY_SECONDS = 90.0
STOP_SECONDS = 20.0


def free_port() -> int:
    """A TCP port of loopback that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
    """Poll another process' state until it holds. Raises ``AssertionError`` naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.02)


class Cluster:
    """One control plane and its nodes. ``settings`` are ``STOCKADE_*`` variables of the control plane."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, str] | None = None,
        cache_dir: Path | None = None,
        lease_seconds: float = 3.0,
        heartbeat_seconds: float = 0.5,
    ) -> None:
        self.folder = folder
        self.lease_seconds = lease_seconds
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._settings = {
            "STOCKADE_STATE_DIR": str(folder / "control"),
            "STOCKADE_PORT": str(self.port),
            "STOCKADE_LEASE_SECONDS": str(lease_seconds),
            "STOCKADE_HEARTBEAT_SECONDS": str(heartbeat_seconds),
            **(settings or {}),
        }
        self._cache_dir = cache_dir
        self._control: subprocess.Popen[bytes] | None = None
        self._gateways: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._node_arguments: dict[str, list[str]] = {}

    @property
    def api_key(self) -> str:
        """The administrator's key, made at the first start."""
        return (self.folder / "control" / "admin.key").read_text().strip()

    def client(self, *, api_key: str | None = None, timeout: float = 30.0) -> Client:
        """A fresh client; the caller closes it."""
        return Client(self.url, api_key=api_key or self.api_key, timeout=timeout)

    def start_control_plane(self) -> None:
        """Start it and return when ``/readyz`` answers 200."""
        assert self._control is None, "the control plane runs already"
        (self.folder / "control").mkdir(parents=True, exist_ok=True)
        self._control = self._spawn("control", [sys.executable, "-m", "controlplane"], self._settings)
        process = self._control
        wait_for(lambda: self._answers(process), "the control plane answering /readyz")

    def start_gateway(self) -> str:
        """Start a gateway process beside it, with the same settings; its address, when it answers there."""
        port = free_port()
        settings = {
            **self._settings,
            "STOCKADE_PORT": str(port),
            "STOCKADE_CONTROL_PLANE_URL": self.url,
            "STOCKADE_GATEWAY_TOKEN_FILE": str(self.folder / "control" / "gateway.token"),
            "STOCKADE_STATE_DIR": str(self.folder / "gateway"),
        }
        command = [sys.executable, "-m", "controlplane", "gateway"]
        process = self._spawn("gateway", command, settings)
        self._gateways.append(process)
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None, self.log("gateway")[-4000:]
            with contextlib.suppress(httpx2.TransportError):
                return httpx2.get(f"{url}/healthz", timeout=2.0, trust_env=False).status_code == 200
            return False

        wait_for(answers, "the gateway answering /healthz")
        return url

    def kill_control_plane(self) -> None:
        """SIGKILL; nothing gets to clean up."""
        self._control = self._kill(self._control)

    def start_node(
        self,
        name: str = "node-a",
        *,
        data: Mapping[str, Path] | None = None,
        arguments: Sequence[str] = (),
        wait: bool = True,
    ) -> None:
        """Start a node (again: under its old identity), and with ``wait`` return when its Python is ready in wasm."""
        assert name not in self._nodes, f"{name} runs already"
        if name not in self._node_arguments:
            state = self.folder / name
            state.mkdir(parents=True, exist_ok=True)
            cache = ["--cache-dir", str(self._cache_dir)] if self._cache_dir else []
            self._node_arguments[name] = [
                *("--url", self.url, "--name", name, "--state-dir", str(state), *cache),
                *("--join-token-file", str(self._join_token(name))),
                *(part for key, path in (data or {}).items() for part in ("--data", f"{key}={path}")),
                *arguments,
            ]
        command = [sys.executable, "-m", "stockade.cli.main", "node", *self._node_arguments[name]]
        self._nodes[name] = self._spawn(name, command, {})
        if wait:
            with self.client() as client:
                wait_for(lambda: self._joined(client, name), f"{name} joining with a ready tier")

    def kill_node(self, name: str = "node-a") -> None:
        """SIGKILL of the daemon; its sandboxes are left to the kernel and to the next start."""
        self._kill(self._nodes.pop(name))

    def freeze_node(self, name: str = "node-a") -> None:
        """SIGSTOP of the daemon: alive, silent."""
        self._nodes[name].send_signal(signal.SIGSTOP)

    def thaw_node(self, name: str = "node-a") -> None:
        """SIGCONT."""
        self._nodes[name].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End everything: asked first, then killed."""
        running = [*self._nodes.values(), *self._gateways, *([self._control] if self._control else [])]
        for process in running:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in running:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._nodes.clear()
        self._gateways.clear()
        self._control = None

    def log(self, name: str) -> str:
        """What ``control`` or a node wrote so far."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def pid(self, name: str) -> int:
        """Process id of ``control`` or of a node."""
        process = self._control if name == "control" else self._nodes[name]
        assert process is not None, f"{name} does not run"
        return process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, name: str, command: list[str], extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("STOCKADE_")}
        # Where this machine's real programs are, also where what points there is not the default.
        shared = {"STOCKADE_COMPONENTS": str(places.components())}
        environment = {**kept, **shared, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY), **extra}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.folder
            )

    def _join_token(self, name: str) -> Path:
        path = self.folder / f"{name}.join"
        with self.client() as client:
            path.write_text(client.join_token().token)
        path.chmod(0o600)
        return path

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        if process.poll() is not None:
            raise AssertionError(f"the control plane ended with {process.returncode}:\n{self.log('control')[-4000:]}")
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{self.url}/readyz", timeout=2.0, trust_env=False).status_code == 200
        return False

    def _joined(self, client: Client, name: str) -> bool:
        process = self._nodes[name]
        if process.poll() is not None:
            raise AssertionError(f"{name} ended with {process.returncode}:\n{self.log(name)[-4000:]}")
        # A node's name on the wire is the name it was given and a random part of its own.
        return any(
            node.name.startswith(f"{name}-") and node.status == "ready" and "wasm" in node.ready_images("python")
            for node in client.nodes()
        )

    @staticmethod
    def _kill(process: subprocess.Popen[bytes] | None) -> None:
        assert process is not None, "it does not run"
        process.kill()
        process.wait()
