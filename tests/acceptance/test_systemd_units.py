"""deploy/systemd: every unit is understood by systemd, closed as far as its role allows, and its command really runs.

No systemd runs here: what it does before ``ExecStart`` (users, namespaces, filters) is not tried, all the rest is.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockade.client import Client
from tests.acceptance.cluster import REPOSITORY, free_port, wait_for
from tests.opa_server import opa_program
from tests.required import absent

UNITS = {path.stem.removeprefix("stockade-"): path for path in (REPOSITORY / "deploy" / "systemd").glob("*.service")}
MOST_EXPOSED = {"control-plane": 2.0, "opa": 2.0, "node": 8.0}
"""On systemd's own scale of 0 (closed) to 10."""
ENDS_SECONDS = 40.0


class Unit:
    """One unit as installed for a test: ``/opt/stockade`` and the folders of state lie below ``root``."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.file = root / "units" / UNITS[name].name
        text = (
            UNITS[name].read_text().replace("/opt/stockade", str(root / "opt")).replace("/etc/stockade", f"{root}/etc")
        )
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(text.replace("User=stockade\n", ""))
        self._process: subprocess.Popen[bytes] | None = None

    def values(self, key: str) -> list[str]:
        """What the unit says for ``key``, with systemd's folders filled in."""
        lines = [line.partition("=")[2] for line in self.file.read_text().splitlines() if line.startswith(f"{key}=")]
        for word, folder in (("%S", "state"), ("%C", "cache"), ("%t", "run")):
            lines = [line.replace(word, str(self.root / folder)) for line in lines]
        return lines

    def start(self, **settings: str) -> None:
        """Run its ``ExecStart`` with its environment, and what would be in its ``EnvironmentFile``."""
        for key, folder in (("StateDirectory", "state"), ("CacheDirectory", "cache"), ("RuntimeDirectory", "run")):
            for name in self.values(key):
                (self.root / folder / name).mkdir(parents=True, exist_ok=True, mode=0o711)
        (command,) = self.values("ExecStart")
        environment = dict(pair.split("=", 1) for line in self.values("Environment") for pair in shlex.split(line))
        with (self.root / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                shlex.split(command), cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **environment, **settings},
            )  # fmt: skip

    def stop(self) -> int:
        """As systemd would: SIGTERM, and the exit status; to systemd dying of it is a clean end too."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(ENDS_SECONDS)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        return (self.root / f"{self.name}.log").read_text(errors="replace")


@pytest.fixture
def units(tmp_path: Path) -> Iterator[dict[str, Unit]]:
    """All of them, installed: the environment of this test run is ``/opt/stockade``."""
    (tmp_path / "opt").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (tmp_path / "opt" / name).symlink_to(Path(sys.prefix) / name)
    (tmp_path / "etc").mkdir()
    shutil.copytree(REPOSITORY / "deploy" / "opa", tmp_path / "opt" / "opa")
    for name in ("config.yaml", "authz.rego"):
        shutil.copy(REPOSITORY / "controlplane" / "authorization" / "opa" / "server" / name, tmp_path / "opt" / "opa")
    made = {name: Unit(name, tmp_path) for name in UNITS}
    yield made
    for unit in made.values():
        unit.kill()


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_the_unit_and_finds_it_closed(name: str, units: dict[str, Unit]) -> None:
    if shutil.which("systemd-analyze") is None:
        absent("tools", "there is no systemd-analyze (make components-tools)")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(units[name].file)], capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0 and "stockade" not in verified.stderr, verified.stderr
    threshold = f"--threshold={MOST_EXPOSED[name] * 10:.0f}"
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", threshold, str(UNITS[name])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert rated.returncode == 0, rated.stdout[-3000:]


def test_what_the_units_start_runs_a_workflow_and_ends_on_sigterm(
    units: dict[str, Unit], tmp_path: Path, image_cache: Path
) -> None:
    (tmp_path / "opt" / "opa" / "opa").symlink_to(opa_program())
    token = tmp_path / "etc" / "opa.token"
    token.write_text("a-token-of-this-test-0123456789abcdef\n")
    url = f"http://127.0.0.1:{(port := free_port())}"
    # run from "/", the checkout is found as an installed package would be
    here = {"PYTHONPATH": str(REPOSITORY)}
    units["control-plane"].start(
        STOCKADE_PORT=str(port), STOCKADE_POLICY_ENGINE="opa", STOCKADE_OPA_TOKEN_FILE=str(token),
        STOCKADE_OPA_URL=f"unix://{tmp_path}/run/stockade-opa/opa.sock", **here,
    )  # fmt: skip
    units["opa"].start(STOCKADE_URL=url)
    key = tmp_path / "state" / "stockade" / "control" / "admin.key"
    probe = [sys.executable, "-m", "controlplane.health"]
    environment = {**os.environ, "STOCKADE_PORT": str(port)}
    wait_for(
        lambda: (
            subprocess.run(probe, cwd=REPOSITORY, env=environment, capture_output=True, check=False).returncode == 0
        ),
        "the control plane's readiness with OPA's policy",
    )
    with Client(url, api_key=key.read_text().strip()) as client:
        (tmp_path / "etc" / "join.token").write_text(client.join_token().token)
        (tmp_path / "cache" / "stockade-node" / "stockade").mkdir(parents=True)
        (tmp_path / "cache" / "stockade-node" / "stockade" / "images").symlink_to(image_cache)
        units["node"].start(STOCKADE_URL=url, **here)
        run = client.submit({"stockade": "1", "name": "unit", "steps": [{"id": "one", "code": {"python": "40 + 2"}}]})
        ended = client.wait(run.id)
        assert ended.status == "completed" and ended.output == {"one": 42}, (ended.error, units["node"].log()[-2000:])
    for name in ("node", "opa", "control-plane"):
        assert units[name].stop() in (0, -signal.SIGTERM), units[name].log()[-2000:]
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "cache" / "stockade-node" / "stockade" / "images").unlink()
