"""Docker Engine from Debian, and its daemon started by hand where no init system does.

A daemon that already answers is used as it is. Ours keeps images and containers in the components' folder, writes
``log/docker.log``, and knows ``runsc`` as a runtime as soon as that is installed.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import store
from component import State
from debian_packages import install_packages

START_SECONDS = 60.0
STOP_SECONDS = 30.0
_LEFTOVER_SECONDS = 5.0
_POLL_SECONDS = 0.1
RUNSC_ARGUMENTS = ("--host-uds=open", "--oci-seccomp")
"""What the container tier needs of runsc: ``sandboxes.container.options.RUNSC_NEEDS``."""
_RUNTIME_STATE = Path("/run/stockade-docker")
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class DockerEngine:
    """``package`` is Debian's; the daemon must be of version ``oldest`` or newer."""

    name = "docker"

    def __init__(self, package: str, oldest: str) -> None:
        self._package = package
        self._oldest = oldest
        self._folder = store.root() / "docker"
        self._pid_file = self._folder / "dockerd.pid"
        self._config = self._folder / "daemon.json"

    def state(self) -> State:
        """Here if a daemon answers on the socket."""
        said = _asked("/version")
        if said is None:
            why = f"no daemon answers on {_socket()}" if self._dockerd() else "there is no dockerd program"
            return State(version=f"≥ {self._oldest}", why=why)
        version = str(said.get("Version", ""))
        if _numbers(version) < _numbers(self._oldest):
            return State(version=version, why=f"the daemon is older than {self._oldest}")
        runtimes = ", ".join(sorted((_asked("/info") or {}).get("Runtimes", {})))
        whose = f"ours, pid {pid}" if (pid := self._our_pid()) else "not started by us"
        return State(version=version, path=_socket(), detail=f"{whose}; runtimes {runtimes}")

    def install(self) -> None:
        """The package, if there is no daemon, and the daemon, if none answers. Raises: ComponentFailed."""
        if self.state().path:
            self.reload()
            return
        if os.geteuid() != 0:
            raise store.ComponentFailed("installing and starting Docker needs root", "run this as root")
        if self._dockerd() is None:
            install_packages(self.name, [self._package, "iptables"])
        self.start()

    def start(self) -> None:
        """Start the daemon; returns when it answers. Raises: ComponentFailed with the log's end."""
        program = self._dockerd()
        if program is None:
            raise store.ComponentFailed("there is no dockerd program", "make components-docker")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._write_config()
        if self._our_pid() is None:
            self._pid_file.unlink(missing_ok=True)
            _end_containerd()
        log = store.root() / "log" / "docker.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            *(program, "--config-file", str(self._config), "--host", f"unix://{_socket()}"),
            *("--pidfile", str(self._pid_file), "--exec-root", str(_RUNTIME_STATE)),
        ]
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True, cwd="/",
                env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"},
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while _asked("/_ping") is None:
            if process.poll() is not None or time.monotonic() > deadline:
                end = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
                raise store.ComponentFailed(f"dockerd did not start:\n{end}", f"read {log}")
            time.sleep(_POLL_SECONDS)
        store.say(self.name, f"daemon started, pid {process.pid}, log {log}")

    def stop(self) -> None:
        """End our daemon and its containers; another's is left alone."""
        pid = self._our_pid()
        if pid is None:
            store.say(self.name, "no daemon of ours runs")
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self._our_pid() == pid:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(_POLL_SECONDS)
        self._pid_file.unlink(missing_ok=True)
        store.say(self.name, f"daemon {pid} stopped")

    def reload(self) -> None:
        """Let our daemon, if it runs, know the runtimes of this moment."""
        pid = self._our_pid()
        if pid is not None:
            self._write_config()
            os.kill(pid, signal.SIGHUP)

    def _write_config(self) -> None:
        config: dict[str, object] = {
            "data-root": str(self._folder / "data"),
            "log-driver": "json-file",
            "log-opts": {"max-size": "10m", "max-file": "2"},
        }
        runsc = store.root() / "bin" / "runsc"
        if runsc.exists():
            # The version's own path: a daemon holds on to it when the link moves on.
            config["runtimes"] = {"runsc": {"path": str(runsc.resolve()), "runtimeArgs": list(RUNSC_ARGUMENTS)}}
        fresh = self._config.with_suffix(".new")
        fresh.write_text(json.dumps(config, indent=2) + "\n")
        fresh.replace(self._config)

    def _dockerd(self) -> str | None:
        return shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")

    def _our_pid(self) -> int | None:
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            alive = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (OSError, ValueError):
            return None
        return pid if alive and str(self._pid_file).encode() in command else None


def _end_containerd() -> None:
    """What a killed daemon left: the next one would wait for it in vain, even for one that waits to be reaped."""
    written = _RUNTIME_STATE / "containerd" / "containerd.pid"
    with suppress(OSError, ValueError):  # it is gone, or never was
        pid = int(written.read_text())
        deadline = time.monotonic() + _LEFTOVER_SECONDS
        while str(_RUNTIME_STATE).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
    written.unlink(missing_ok=True)


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5.0)
        self.sock.connect(_socket())


def _asked(path: str) -> dict[str, Any] | None:
    connection = _UnixConnection("docker")
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            return None
        return json.loads(body) if path != "/_ping" else {}
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _socket() -> str:
    given = os.environ.get("DOCKER_HOST", "")
    return given.removeprefix("unix://") if given.startswith("unix://") else "/var/run/docker.sock"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split("+")[0].split("-")[0].split(".")[:2] if part.isdigit()]
