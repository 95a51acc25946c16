"""``make components``: whole or not at all, once, and honest about what is missing; its tools are stand-ins."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from sandboxes.container.options import RUNSC_NEEDS
from stockade.cli import places
from tests.acceptance.cluster import REPOSITORY, wait_for

FOLDER = REPOSITORY / "deploy" / "components"
PINNED = tomllib.loads((FOLDER / "versions.toml").read_text())
VERSION = PINNED["opa"]["version"]
OF_THE_HOST = {"tools", "compose"}
"""Packages of the host, which may be here."""
# Builds a program that says its version; first it waits for as long as a file called `hold` is there.
GO = """#!/bin/sh
echo "$@" >> "{folder}/calls"
mkdir -p "$GOBIN"
printf half > "$GOBIN/opa"
while [ -e "{folder}/hold" ]; do sleep 0.02; done
[ -e "{folder}/broken" ] && {{ echo "no such module"; exit 1; }}
printf '#!/bin/sh\\necho "Version: {version}"\\n' > "$GOBIN/opa"
chmod +x "$GOBIN/opa"
"""


class Host:
    """A folder to install into, and a ``go`` that is ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "components"
        (folder / "bin").mkdir()
        go = folder / "bin" / "go"
        go.write_text(GO.format(folder=folder, version=VERSION.removeprefix("v")))
        go.chmod(0o755)

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        path = f"{self.folder / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
        given = {"PATH": path, "STOCKADE_COMPONENTS": str(self.root), "DOCKER_HOST": "unix:///nonexistent"}
        return subprocess.Popen(
            [sys.executable, str(FOLDER), *arguments], env={**given, **(environment or {})}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            # Who runs tests in the background may have them ignore it, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
        process = self.start(*arguments, environment=environment)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def calls(self) -> int:
        path = self.folder / "calls"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_installing_says_how_long_and_is_done_once(host: Host) -> None:
    for _ in range(2):
        code, said = host.run("install", "opa")
        assert code == 0
        assert re.search(rf"opa +{VERSION} at {host.root}/bin/opa, \d+\.\d s", said)
    assert host.calls() == 1
    assert (host.folder / "calls").read_text() == f"install {PINNED['opa']['module']}@{VERSION}\n"


def test_what_fails_leaves_nothing_and_says_where_to_read(host: Host) -> None:
    (host.folder / "broken").touch()
    code, said = host.run("install", "opa")
    assert code == 1
    assert "no such module" in said
    assert f"fix:      read {host.root}/log/opa.log" in said
    assert not (host.root / "bin" / "opa").exists()
    assert not list(host.root.glob("*opa*"))


def test_killed_in_the_middle_it_is_absent_and_then_whole(host: Host) -> None:
    """The tool outlives its killed installer; the next one waits for its end before it begins."""
    (host.folder / "hold").touch()
    with host.start("install", "opa") as killed:
        wait_for(lambda: host.calls() == 1, "the build beginning", 20)
        killed.kill()
        killed.wait()
        assert not (host.root / "bin").exists()
        with host.start("install", "opa") as second:
            assert second.stdout is not None
            assert "waiting" in second.stdout.readline()
            (host.folder / "hold").unlink()
            second.communicate(timeout=30)
            assert second.returncode == 0
    assert host.calls() == 2
    assert subprocess.run([host.root / "bin" / "opa"], capture_output=True, check=True).stdout.startswith(b"Version")
    assert [path.name for path in host.root.glob("*opa*")] == [f"opa-{VERSION}"]


def test_two_at_once_build_once(host: Host) -> None:
    (host.folder / "hold").touch()
    with host.start("install", "opa") as first, host.start("install", "opa") as second:
        wait_for(lambda: host.calls() == 1, "one build beginning", 20)
        (host.folder / "hold").unlink()
        for one in (first, second):
            one.communicate(timeout=30)
            assert one.returncode == 0
    assert host.calls() == 1


def test_interrupted_by_a_person_it_leaves_nothing(host: Host) -> None:
    (host.folder / "hold").touch()
    with host.start("install", "opa") as process:
        wait_for(lambda: host.calls() == 1, "the build beginning", 20)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert not list(host.root.glob("*opa*"))


def test_status_says_for_each_what_is_here_or_what_to_do(host: Host) -> None:
    host.run("install", "opa")
    code, said = host.run("status", "--json")
    listed = {one["name"]: one for one in json.loads(said)}
    assert code == 1
    assert set(listed) == set(PINNED)
    assert listed["opa"] | {"detail": "", "why": ""} == {
        "name": "opa", "present": True, "version": VERSION, "path": f"{host.root}/bin/opa", "detail": "", "why": "",
        "fix": "",
    }  # fmt: skip
    for name in set(PINNED) - {"opa", *OF_THE_HOST}:
        assert not listed[name]["present"]
        assert listed[name]["why"]
        assert listed[name]["fix"] == f"make components-{name}"
    plain = host.run("status")[1]
    present = sum(one["present"] for one in listed.values())
    assert plain.count("✓") == present
    assert plain.count("FIX make components-") == len(PINNED) - present


def test_a_program_that_says_another_version_is_built_again(host: Host) -> None:
    host.run("install", "opa")
    (host.root / f"opa-{VERSION}" / "bin" / "opa").write_text('#!/bin/sh\necho "Version: 0.9"\n')
    assert host.run("status")[0] == 1
    assert host.run("install", "opa")[0] == 0
    assert host.calls() == 2


def test_stockade_looks_where_components_are_put(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.run("install", "opa")
    monkeypatch.setenv("STOCKADE_COMPONENTS", str(host.root))
    assert places.component("opa") == host.root / "bin" / "opa"
    monkeypatch.delenv("STOCKADE_COMPONENTS")
    monkeypatch.setenv("XDG_DATA_HOME", str(host.folder / "data"))
    host.run("install", "opa", environment={"STOCKADE_COMPONENTS": "", "XDG_DATA_HOME": str(host.folder / "data")})
    assert places.component("opa") == host.folder / "data" / "stockade" / "components" / "bin" / "opa"


def test_versions_are_written_once() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert f"UV_VERSION := {PINNED['sglang']['uv']}\n" in makefile
    assert f"COMPONENTS := {' '.join(PINNED)}\n" in makefile


def test_the_daemon_starts_runsc_as_the_container_tier_needs_it() -> None:
    program = "import docker_engine; print(*docker_engine.RUNSC_ARGUMENTS)"
    said = subprocess.run([sys.executable, "-c", program], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert set(said.stdout.split()) >= set(RUNSC_NEEDS)


def test_make_alone_lists_every_target_that_people_call() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    said = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)).split()
    listed = re.findall(r"^  make (\S+) ", said, re.MULTILINE)
    assert sorted(listed) == sorted(name for name in phony if "$" not in name and name != "sync-science")
