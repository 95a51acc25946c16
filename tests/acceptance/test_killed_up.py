"""``kill -9`` of ``stockade up`` leaves no process behind, and the next start takes up where it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.acceptance.cluster import Cluster, wait_for
from tests.acceptance.standalone import Standalone

PROMISED_SECONDS = 5.0


def lives(process: psutil.Process) -> bool:
    """Whether it can still do anything: what only waits for its parent to look at its exit code cannot."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def serving(up: Standalone) -> bool:
    """Whether every kind of process is there: control plane, policy workers, node, sandboxes."""
    lines = up.command_lines()
    kinds = ("-m controlplane", "authorization/worker.py", "stockade.cli.main node", "sandboxes.wasm.worker")
    return all(any(kind in line for line in lines) for kind in kinds)


@pytest.mark.parametrize("path", [os.environ["PATH"], "/nonexistent"], ids=["as it is", "without bubblewrap"])
def test_kill_9_of_up_ends_every_process_below_it(tmp_path: Path, image_cache: Path, path: str) -> None:
    first = Standalone(tmp_path, image_cache)
    first.environment["PATH"] = path
    with first:
        wait_for(lambda: serving(first), "a node with sandboxes")
        left = first.descendants()
        first.kill()
        began = time.monotonic()
        wait_for(lambda: not any(lives(one) for one in left), "the end of what it had started", PROMISED_SECONDS)
        print(f"\n{len(left)} processes gone {time.monotonic() - began:.2f} s after SIGKILL")
    second = Standalone(tmp_path, image_cache)
    second.environment["PATH"] = path
    with second:
        done = second.command("run", str(Path(__file__).parents[2] / "examples" / "hello.json"), "--wait")
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for(lambda: serving(second), "a node with sandboxes")
        left = second.descendants()
        second.kill()
        wait_for(lambda: not any(lives(one) for one in left), "the end of what it had started", PROMISED_SECONDS)
    shutil.rmtree(tmp_path / "state")


def test_a_node_of_its_own_outlives_the_shell_that_started_it(make_cluster: type[Cluster], tmp_path: Path) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node("node-a")
    node = psutil.Process(cluster.pid("node-a"))
    program = (
        "import subprocess, sys; child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL,"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True);"
        " print(child.pid, flush=True); child.wait()"
    )
    shell = subprocess.Popen(
        [sys.executable, "-c", program, *node.cmdline(), "--state-dir", str(tmp_path / "second"), "--name", "second"],
        stdout=subprocess.PIPE, text=True, env=node.environ(), cwd=node.cwd(),
    )  # fmt: skip
    assert shell.stdout is not None
    orphan = psutil.Process(int(shell.stdout.readline()))
    try:
        with cluster.client() as client:
            wait_for(lambda: any(one.name.startswith("second-") for one in client.nodes()), "the second node joining")
            shell.kill()
            shell.wait()
            seen = next(one for one in client.nodes() if one.name.startswith("second-"))
            assert lives(orphan) and seen.status == "ready"
            orphan.send_signal(signal.SIGTERM)
            wait_for(lambda: not lives(orphan), "the second node draining on SIGTERM")
    finally:
        shell.stdout.close()
        if lives(orphan):
            orphan.kill()
