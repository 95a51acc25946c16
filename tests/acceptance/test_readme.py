"""Every command the README shows is run as it stands there; a command this test does not know how to run fails it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.cluster import REPOSITORY, Cluster

BLOCKS = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON_BLOCKS = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    blocks = BLOCKS.findall((REPOSITORY / "README.md").read_text())
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def run(command: list[str], environment: dict[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


def test_stockade_commands_of_the_readme_succeed(cluster: Cluster, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "STOCKADE_URL": cluster.url,
        "STOCKADE_API_KEY": cluster.api_key,
        "HOME": str(tmp_path),
    }
    shown = [command for command in commands() if command.startswith("stockade ")]
    assert len(shown) >= 6
    for command in shown:
        arguments = [sys.executable, "-m", "stockade.cli.main", *shlex.split(command)[1:]]
        done = run(arguments, environment, 120.0)
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{command} printed nothing"
    assert {command.split()[0] for command in commands()} == {"stockade", "make"}


def test_python_of_the_readme_runs(cluster: Cluster) -> None:
    (source,) = PYTHON_BLOCKS.findall((REPOSITORY / "README.md").read_text())
    source = source.replace("http://127.0.0.1:7373", cluster.url).replace("sk_…", cluster.api_key)
    done = run([sys.executable, "-c", source], dict(os.environ), 60.0)
    assert (done.returncode, done.stdout.strip()) == (0, "completed"), done.stderr


def test_the_demo_ends_with_report_tree_decisions_and_url(tmp_path: Path) -> None:
    assert "make demo" in commands()
    setup = tmp_path / "setup"
    setup.mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    demo = [sys.executable, "examples/incident-triage/demo.py", str(tmp_path / "state"), str(setup)]
    if not any(os.access(path, os.R_OK) for path in Path("/var/log").rglob("*.log")):
        pytest.skip("this machine has no readable log file below /var/log")
    done = run(demo, environment, 170.0)
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("# Incident triage", "decisions  ", "API        http://127.0.0.1:", "artifacts  report.md"):
        assert expected in done.stdout
    assert "incident-triage@1" in done.stderr and "probe  code wasm" in done.stderr
