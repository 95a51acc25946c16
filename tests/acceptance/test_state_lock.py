"""A state folder has one owner: the second says who the first is and touches nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.acceptance.cluster import REPOSITORY, Cluster, wait_for
from tests.acceptance.standalone import Standalone

ALREADY_RUNNING = 9
SLEEPER = """
{"stockade": "1", "name": "sleeper", "steps": [
  {"id": "sleep", "code": {"python": "import time; time.sleep(300)"}}]}
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, image_cache: Path) -> Iterator[Standalone]:
    """One ``stockade up`` with a ready node."""
    with Standalone(tmp_path_factory.mktemp("up"), image_cache) as started:
        wait_for(lambda: any("sandboxes.wasm.worker" in line for line in started.command_lines()), "a warm sandbox")
        yield started


def context_of(up: Standalone) -> bytes:
    return (up.folder / ".config" / "stockade" / "context.json").read_bytes()


def processes_of(up: Standalone) -> set[int]:
    """Control plane, node and sandboxes; warm ones may still be added while a test looks."""
    lasting = ("-m controlplane", "stockade.cli.main node", "sandboxes.wasm.worker")
    pids = set()
    for one in up.descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(kind in " ".join(one.cmdline()) for kind in lasting):
                pids.add(one.pid)
    return pids


def second(up: Standalone, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=up.folder, env={**up.environment, **environment}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("port", [[], ["--port", "0"]], ids=["same port", "free port"])
def test_a_second_up_names_the_first_and_changes_nothing(up: Standalone, port: list[str]) -> None:
    context, processes = context_of(up), processes_of(up)
    done = up.command("up", "--state-dir", str(up.folder / "state"), *port)
    assert done.returncode == ALREADY_RUNNING, done.stderr
    assert f"already running at {up.url} (pid {up.pid})" in done.stderr
    assert "Stockade is up" not in done.stdout
    assert context_of(up) == context and processes_of(up) >= processes
    assert up.command("ps").returncode == 0


def test_a_second_control_plane_ends_before_it_opens_the_database(up: Standalone) -> None:
    done = second(
        up, [sys.executable, "-m", "controlplane"],
        STOCKADE_STATE_DIR=str(up.folder / "state" / "control"), STOCKADE_PORT="0",
    )  # fmt: skip
    assert done.returncode == ALREADY_RUNNING, done.stderr
    assert f"already running at {up.url} (pid " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("program", ["stockade.cli.main node", "dataplane.cli"])
def test_a_second_node_leaves_the_sandboxes_alone(up: Standalone, program: str) -> None:
    context, processes = context_of(up), processes_of(up)
    state = str(up.folder / "state" / "node")
    done = second(up, [sys.executable, "-m", *program.split(), "--url", up.url, "--state-dir", state])
    assert done.returncode == ALREADY_RUNNING, done.stderr
    assert f"already running for {up.url} (pid " in done.stderr and "Traceback" not in done.stderr
    assert context_of(up) == context and processes_of(up) >= processes


def test_a_second_demo_says_so_and_ends(up: Standalone) -> None:
    context, processes = context_of(up), processes_of(up)
    demo = str(REPOSITORY / "examples" / "incident-triage" / "demo.py")
    done = second(up, [sys.executable, demo, str(up.folder / "state"), str(up.folder)])
    assert done.returncode != 0
    assert f"already running at {up.url} (pid {up.pid})" in done.stderr
    assert context_of(up) == context and processes_of(up) >= processes


def test_up_ends_where_its_child_is_not_alone_with_the_state(
    make_cluster: Callable[..., Cluster], tmp_path: Path, image_cache: Path
) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    here = Standalone(tmp_path / "home", image_cache)
    (here.folder / "state").mkdir()
    (here.folder / "state" / "control").symlink_to(cluster.folder / "control")
    done = here.command("up", "--port", "0", "--state-dir", str(here.folder / "state"))
    assert done.returncode == ALREADY_RUNNING, done.stderr
    assert f"already running at {cluster.url} (pid {cluster.pid('control')})" in done.stderr
    assert not (here.folder / ".config").exists()


def test_a_variable_that_is_wrong_is_named_with_its_form(tmp_path: Path, image_cache: Path) -> None:
    here = Standalone(tmp_path, image_cache)
    here.environment["STOCKADE_PRIVATE_HOSTS"] = "127.0.0.1"
    done = here.command("up", "--port", "0", "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 1
    (why,) = [line for line in done.stderr.splitlines() if line.startswith("why:")]
    assert "STOCKADE_PRIVATE_HOSTS='127.0.0.1'" in why and "HOST:PORT" in why
    done = here.command("up", "--port", "0", "--state-dir", str(tmp_path / "state"), "--private-host", "nowhere")
    assert done.returncode == 2
    assert "--private-host" in done.stderr and "HOST:PORT" in done.stderr


def test_the_banner_comes_after_the_node_and_a_dead_child_is_named(tmp_path: Path, image_cache: Path) -> None:
    with Standalone(tmp_path, image_cache) as up:
        assert "node             joined" in up.log("up")
        node = next(one for one in up.descendants() if "stockade.cli.main" in one.cmdline())
        node.kill()
        wait_for(lambda: "the node was ended by SIGKILL; starting it again" in up.log("up"), "the word on the node")
        assert "why: registered" in up.log("up")


def test_ctrl_c_says_what_it_drains_and_twice_forces(tmp_path: Path, image_cache: Path) -> None:
    (tmp_path / "sleeper.json").write_text(SLEEPER)
    with Standalone(tmp_path, image_cache) as up:
        submitted = up.command("run", "sleeper.json", "--detach")
        assert submitted.returncode == 0, submitted.stderr
        wait_for(lambda: '"attempts": 1' in up.command("node", "ls", "-o", "json").stdout, "the step running")
        up.signal(signal.SIGINT)
        wait_for(lambda: "draining 1 attempt for up to 10 s; Ctrl-C again to force" in up.log("up"), "the word on it")
        assert up.returncode() is None
        up.signal(signal.SIGINT)
        wait_for(lambda: up.returncode() is not None, "the end", 5.0)
        assert up.returncode() == 0 and "forced" in up.log("up")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_what_an_older_node_left_mounted_is_unmounted(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    left = [cluster.folder / "node-a" / "sandboxes" / tier / "old" / "root" / "rw" for tier in ("wasm", "jail")]
    for place in left:
        place.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "left", str(place)], check=True)
    busy = [(place / "busy").open("w") for place in left]
    try:
        (left[0].parents[1] / "record.json").write_text('{"label": "old"}')
        cluster.start_node("node-a")
    finally:
        for file in busy:
            file.close()
    assert not any(place.parents[1].exists() for place in left)
    assert str(cluster.folder) not in Path("/proc/self/mountinfo").read_text()
    assert "ERROR" not in cluster.log("node-a").upper()
