"""A node that cannot register says so: at once, then ever more rarely, with where, why and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from structlog.testing import capture_logs

from dataplane.client import ControlPlaneUnavailable
from dataplane.outage import LONGEST_PAUSE_SECONDS, Outage, fix_of
from tests.acceptance.cluster import REPOSITORY, free_port

TOKEN = "join_5up3rs3cr3t"


def test_failures_are_told_at_once_and_then_ever_more_rarely() -> None:
    outage = Outage("https://control", TOKEN)
    with capture_logs() as logs:
        for tenth in range(36_000):
            outage.failed(ControlPlaneUnavailable("HTTP 503 from /x"), 100 + tenth / 10)
    moments = [entry["seconds"] for entry in logs]
    assert moments[:6] == [0, 5, 15, 35, 75, 155]
    gaps = [after - before for before, after in pairwise(moments)]
    assert gaps == sorted(gaps) and gaps[-1] == LONGEST_PAUSE_SECONDS
    assert logs[1]["failures"] == 51


def test_an_echoed_token_is_not_logged() -> None:
    with capture_logs() as logs:
        Outage("https://control", TOKEN).failed(ControlPlaneUnavailable(f"HTTP 500 from /x: Bearer {TOKEN}!"), 0)
    assert TOKEN not in json.dumps(logs) and logs[0]["cause"].endswith("Bearer [join token]!")


@pytest.mark.parametrize(
    ("cause", "fix"),
    [
        ("ClientConnectorError: Cannot connect to host 127.0.0.1:1 ssl:default [Connect call failed]", "start the"),
        ("ClientConnectorCertificateError: certificate verify failed", "--ca-file"),
        ("ClientConnectorDNSError: Cannot connect to host nope:443 [Name or service not known]", "name service"),
        ("TimeoutError: ", "drops the connection"),
        ("HTTP 502 from /node/v1/register: ", "own log"),
        ("answer not understood: JSON is malformed", "check --url"),
    ],
)
def test_each_cause_has_its_fix(cause: str, fix: str) -> None:
    assert fix in fix_of(cause)


@pytest.mark.parametrize("answers", [False, True])
def test_a_node_process_says_that_it_cannot_register(tmp_path: Path, httpserver: HTTPServer, answers: bool) -> None:
    httpserver.expect_request("/node/v1/register").respond_with_data(f"you sent {TOKEN}", status=503)
    url = httpserver.url_for("").rstrip("/") if answers else f"http://127.0.0.1:{free_port()}"
    (tmp_path / "join").write_text(TOKEN)
    command = [sys.executable, "-m", "dataplane.cli", "--url", url, "--state-dir", str(tmp_path / "node")]
    node = subprocess.Popen(
        [*command, "--join-token-file", str(tmp_path / "join"), "--pool-size", "0"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert node.stderr is not None
    with node:
        said = node.stderr.readline()
        node.kill()
        rest = node.stderr.read()
    told = json.loads(said)
    assert told["level"] == "warning" and told["url"] == url and told["cause"] and told["fix"]
    assert ("HTTP 503" in told["cause"]) == answers
    assert TOKEN not in said + rest
