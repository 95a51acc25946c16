"""The composed system for tests: deploy/compose.yaml, started by either generation of Compose from images made here.

A host without Compose, an engine or the images skips these tests with the reason; with ``compose`` in STOCKADE_REQUIRE
they fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Literal, Self

from stockade.cli import places
from stockade.client import Client
from tests import required
from tests.acceptance.cluster import REPOSITORY, free_port, wait_for

Generation = Literal["1.29", "v2"]
_PROGRAMS: dict[Generation, str] = {"1.29": "docker-compose", "v2": "compose-v2"}
_IMAGES = ("stockade:local", "stockade-opa:local")
_KEYS = "/run/stockade/keys"


@cache
def absent(generation: Generation) -> str | None:
    """Why nothing can be composed here."""
    name = _PROGRAMS[generation]
    if places.component(name) is None:
        return f"there is no program {name} (make components-compose components-compose-v2)"
    if shutil.which("docker") is None:
        return "there is no program docker (make components-docker)"
    asked = subprocess.run(
        ["docker", "image", "inspect", *_IMAGES], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return f"{asked.stderr.strip()} (make deploy-images)" if asked.returncode else None


def require(generation: Generation) -> None:
    """Call it in a fixture."""
    if reason := absent(generation):
        required.absent("compose", reason)


class Composed:
    """One project, up on entry; gone with its volumes on exit. ``files`` are of ``deploy/``, ``folder`` is scratch."""

    def __init__(self, folder: Path, generation: Generation, *files: str) -> None:
        self.folder = folder
        self.project = f"stockade-test-{os.getpid()}-{generation.replace('.', '')}"
        self.url = f"https://127.0.0.1:{(port := free_port())}"
        self.ca_file = folder / "ca.pem"
        self.has_walls = "compose.jail.yaml" in files
        self._program = str(places.component(_PROGRAMS[generation]))
        self._files = [word for name in files for word in ("-f", str(REPOSITORY / "deploy" / name))]
        ours = {key: value for key, value in os.environ.items() if not key.startswith("STOCKADE_")}
        self._environment = {**ours, "STOCKADE_PUBLISHED_PORT": str(port)}

    def compose(self, *words: str, seconds: float = 300.0) -> str:
        """Run Compose; what it prints on standard output. Fails the test where it fails."""
        command = [self._program, "-p", self.project, *self._files, *words]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False,
            env=self._environment,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def up(self) -> None:
        """Start it (again), and return when its node can be given work."""
        self.compose("up", "-d")
        self.ca_file.write_text(self.compose("exec", "-T", "control-plane", "cat", f"{_KEYS}/ca.pem"))
        with self.client() as client:
            wait_for(lambda: any(one.status == "ready" and one.tiers for one in client.nodes()), "a node with a tier")

    def client(self) -> Client:
        """As a person outside has it. ``SSL_CERT_FILE`` must name ``ca_file``."""
        key = self.compose("exec", "-T", "control-plane", "cat", "/var/lib/stockade/control/admin.key")
        return Client(self.url, api_key=key.strip(), timeout=30.0)

    def containers(self, *, all_of_them: bool = False) -> list[str]:
        """Ids of those that run, or of all."""
        words = ["ps", "-q", *(["-a"] if all_of_them else []), "--filter"]
        return docker(*words, f"label=com.docker.compose.project={self.project}").split()

    def kill(self) -> None:
        """SIGKILL of every process in every container at once."""
        docker("kill", "--signal", "KILL", *self.containers())

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.compose("down", "-v", "-t", "5")


def docker(*words: str) -> str:
    """Run the engine's own client."""
    done = subprocess.run(
        ["docker", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}"
    return done.stdout
