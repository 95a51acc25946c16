"""Every command the README shows is run as it stands there; a command this test does not know how to run fails it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.cluster import REPOSITORY
from tests.acceptance.standalone import Standalone

BLOCKS = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON_BLOCKS = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ACTIVATE = "source .venv/bin/activate"


def terminals() -> list[list[str]]:
    """The commands of each console block: what a person types into one terminal."""
    blocks = BLOCKS.findall((REPOSITORY / "README.md").read_text())
    return [[line[2:] for line in block.splitlines() if line.startswith("$ ")] for block in blocks]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, image_cache: Path) -> Iterator[Standalone]:
    """`stockade up` with a home of its own, where it keeps the context that everything here finds it by."""
    if not (REPOSITORY / ".venv" / "bin" / "activate").exists():
        pytest.skip("the commands need the .venv that `make demo` makes")
    with Standalone(tmp_path_factory.mktemp("readme"), image_cache) as up:
        yield up


def typed(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One line typed into a terminal whose environment was activated."""
    # Nothing of the test's own environment finds the program or the package.
    own = {key: value for key, value in environment.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    own["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    line = ["bash", "-c", f"{ACTIVATE} && {command}"]
    return subprocess.run(line, cwd=REPOSITORY, env=own, capture_output=True, text=True, timeout=120.0, check=False)


def test_every_command_of_the_readme_is_known_to_this_test() -> None:
    demo, server, client = terminals()
    assert demo == ["make demo"] and server == [ACTIVATE, "stockade up"]
    assert client[0] == ACTIVATE and len(client) >= 6 and all(line.startswith("stockade ") for line in client[1:])


def test_stockade_commands_of_the_readme_succeed(started: Standalone) -> None:
    for command in terminals()[2][1:]:
        done = typed(command, started.environment)
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{command} printed nothing"
        if "explain" in command:
            assert "placed " in done.stdout and "runtime.workflow" in done.stdout


def test_python_of_the_readme_runs(started: Standalone, tmp_path: Path) -> None:
    (source,) = PYTHON_BLOCKS.findall((REPOSITORY / "README.md").read_text())
    file = tmp_path / "readme.py"
    file.write_text(source)
    done = typed(f"python {file}", started.environment)
    assert (done.returncode, done.stdout.strip()) == (0, "completed"), done.stderr


def test_the_demo_ends_with_report_tree_decisions_and_url(tmp_path: Path) -> None:
    setup = tmp_path / "setup"
    setup.mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    demo = [sys.executable, "examples/incident-triage/demo.py", str(tmp_path / "state"), str(setup)]
    if not any(os.access(path, os.R_OK) for path in Path("/var/log").rglob("*.log")):
        pytest.skip("this machine has no readable log file below /var/log")
    done = subprocess.run(
        demo, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=170.0, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("# Incident triage", "decisions  ", "API        http://127.0.0.1:", "artifacts  report.md"):
        assert expected in done.stdout
    assert "incident-triage@1" in done.stderr and "probe  code wasm" in done.stderr
