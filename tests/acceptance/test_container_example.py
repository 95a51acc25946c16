"""``examples/containers`` as it is shipped: a C library compiled and tested in a container, beside its sources."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from sandboxes.container.engine import Engine
from sandboxes.container.images import reference
from stockade.client import Client, Run
from tests import container_engine
from tests.acceptance.cluster import REPOSITORY, Cluster

EXAMPLE = REPOSITORY / "examples" / "containers"
COMMAND = re.compile(r"^ {4}stockade (image build (\S+) --packages \S+)", re.MULTILINE)
BUILD_SECONDS = 900.0


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    """The image, made as the README says if this machine has it not: from Debian packages, which needs root."""
    container_engine.require()
    found = COMMAND.search((EXAMPLE / "README.md").read_text())
    assert found is not None
    engine = Engine()
    try:
        if engine.image_id(reference(found[2])) is not None:
            return
    finally:
        engine.close()
    if os.geteuid() != 0:
        pytest.skip(f"the engine has no image {found[2]!r}, and making it needs root")
    command = [sys.executable, "-m", "stockade.cli.main", *found[1].split()]
    subprocess.run(command, check=True, timeout=BUILD_SECONDS)


@pytest.fixture
def client(make_cluster: Callable[..., Cluster]) -> Client:
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node(data={"project": EXAMPLE / "project"})
    return cluster.client()


def ran(client: Client, old: str = "", new: str = "") -> Run:
    text = (EXAMPLE / "workflow.json").read_text()
    assert old in text
    return client.wait(client.submit(json.loads(text.replace(old, new) if old else text)).id)


def test_it_is_built_and_tested_and_comes_out(client: Client) -> None:
    with client:
        run = ran(client)
        assert run.status == "completed", run.error
        assert run.output["passed"] == 7
        kept = {one.name: client.artifact_content(one.id) for one in client.artifacts(run.id)}
        assert set(kept) == {"tests.txt", "libstats.a", "stats.h"}
        assert kept["libstats.a"].startswith(b"!<arch>\n") and len(kept["libstats.a"]) == run.output["library_bytes"]
        assert kept["stats.h"] == (EXAMPLE / "project" / "stats.h").read_bytes()
        assert b"7 passed, 0 failed" in kept["tests.txt"]


def test_a_failing_test_fails_the_step_with_what_it_printed(client: Client) -> None:
    with client:
        run = ran(client, "tcc -Wall -Werror -I/inputs /inputs/stats.c", "tcc -Wall -I/inputs -Dstats_variance=wrong")
        assert run.status == "failed" and run.error is not None and run.error.path == "test"
        assert "stats" in client.logs(run.id, "test", stream="stderr")
