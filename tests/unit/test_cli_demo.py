"""`make demo` ended by a signal at any moment leaves no Stockade behind and shows no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.acceptance.cluster import REPOSITORY, wait_for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("until", ["banner.txt", "control/admin.key"])
def test_a_stopped_demo_stops_what_it_started(tmp_path: Path, number: signal.Signals, until: str) -> None:
    state, setup = tmp_path / "state", tmp_path / "setup"
    setup.mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    demo = subprocess.Popen(
        [sys.executable, "examples/incident-triage/demo.py", str(state), str(setup)],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    started: list[psutil.Process] = []
    try:
        wait_for((state / until).exists, f"{until} appearing")
        wait_for(lambda: bool(psutil.Process(demo.pid).children()), "stockade up starting")
        started = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(number)
        _, err = demo.communicate(timeout=60.0)
        assert demo.returncode == 128 + number and "Traceback" not in err, err
        gone, left = psutil.wait_procs(started, timeout=10.0)
        assert not left and gone
    finally:
        for process in (*started, demo):
            if process.pid and psutil.pid_exists(process.pid):
                process.kill()
        demo.wait()
