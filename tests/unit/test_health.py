"""Probes without curl: ready, not ready, nobody there; a node that is heard and one that is not."""

from __future__ import annotations

import datetime
import os
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import dataplane.health
from controlplane import health
from controlplane.certificates import ensure
from controlplane.config import Settings

NAMES = ["control-plane"]


class Readiness(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.end_headers()
        self.wfile.write(b"no policy yet")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    for name in ("ours", "theirs"):
        ensure(tmp_path / name, NAMES, datetime.datetime.now(datetime.UTC))
    return tmp_path


@pytest.fixture(params=["http", "https"])
def settings(request: pytest.FixtureRequest, keys: Path) -> Iterator[Settings]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Readiness)
    tls: dict[str, Path] = {}
    if request.param == "https":
        tls = {"tls_certificate_file": keys / "ours" / "server.pem", "tls_key_file": keys / "ours" / "server.key"}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls["tls_certificate_file"], tls["tls_key_file"])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Settings(host="0.0.0.0", port=server.server_address[1], **tls)  # type: ignore[arg-type]  # noqa: S104
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_control_plane_that_is_ready(settings: Settings) -> None:
    assert health.failure(settings) is None


def test_one_that_is_not_says_why(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Readiness, "status", 503)
    assert health.failure(settings) == "HTTP 503: no policy yet"


def test_whoever_else_has_the_port_is_not_it(settings: Settings, keys: Path) -> None:
    if settings.tls_certificate_file is None:
        return
    other = {"tls_certificate_file": keys / "theirs" / "server.pem", "tls_key_file": keys / "theirs" / "server.key"}
    assert "does not answer" in (health.failure(settings.model_copy(update=other)) or "")


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("STOCKADE_PORT", "1")
    assert health.main() == 1
    assert "does not answer" in capsys.readouterr().out
    monkeypatch.setenv("STOCKADE_PORT", "none")
    assert health.main() == 1
    assert "STOCKADE_PORT" in capsys.readouterr().out


def test_a_node_is_healthy_while_its_heartbeats_are_acknowledged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dataplane.health.main([str(tmp_path)]) == 1
    assert "never" in capsys.readouterr().out
    heard = tmp_path / dataplane.health.HEARD
    heard.touch()
    assert dataplane.health.main([str(tmp_path)]) == 0
    os.utime(heard, (time.time() - 60, time.time() - 60))
    assert dataplane.health.main([str(tmp_path)]) == 1
    assert "60 s ago" in capsys.readouterr().out
    assert dataplane.health.main([str(tmp_path), "--most-seconds", "90"]) == 0
