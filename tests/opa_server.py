"""A real OPA server for tests: the program that ``make components-opa`` installed, configured as ours always is.

It fetches its bundle from a small HTTP server here, which a test can tell what to serve. A host without OPA skips
these tests with the reason; with ``opa`` in STOCKADE_REQUIRE they fail.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import anyio.lowlevel

from controlplane.authorization.bundle import Bundle
from controlplane.authorization.opa.address import OpaAddress
from controlplane.authorization.opa.archive import archive
from controlplane.authorization.opa.engine import OpaEngine
from controlplane.authorization.values import PolicyUnavailable
from stockade.cli import opa_child, places
from tests import required

TOKEN = "a-token-that-only-this-test-knows-0123456789"
READY_SECONDS = 30.0


def opa_program() -> Path:
    """The program; skips or fails the test where there is none that runs."""
    found = places.component("opa")
    version = opa_child.version(found) if found else ""
    if not version:
        why = f"{found} does not run" if found else "no opa program (make components-opa)"
        required.absent("opa", why)
    assert found is not None
    return found


class OpaServer:
    """One OPA on a unix socket in a folder of its own. ``served`` is what it fetches next."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.served = bundle
        self.socket = folder / "opa.sock"
        self._log = folder / "opa.log"
        self._program = opa_program()
        self._process: subprocess.Popen[bytes] | None = None
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def start(self) -> None:
        """Start it; it listens and has its bundle a moment later."""
        url = f"http://127.0.0.1:{self._http.server_address[1]}"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                opa_child.command(self._program, self.socket), env=opa_child.environment(url, TOKEN),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def send(self, number: signal.Signals) -> None:
        """A signal to the server; after SIGKILL it is gone when this returns."""
        assert self._process is not None
        self._process.send_signal(number)
        if number is signal.SIGKILL:
            self._process.wait()

    def stop(self) -> None:
        """End the server and what serves it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def engine(self, bundle: Bundle | None = None) -> OpaEngine:
        """An engine that asks it, and expects ``bundle``: what it serves, unless told."""
        return OpaEngine(bundle or self.served, OpaAddress.parse(f"unix://{self.socket}"), TOKEN)

    def _handler(server: OpaServer) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.headers["Authorization"] == f"Bearer {TOKEN}"
                tag = f'"{server.served.revision}"'
                is_known = self.headers["If-None-Match"] == tag
                body = b"" if is_known else archive(server.served)
                self.send_response(304 if is_known else 200)
                self.send_header("ETag", tag)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing is said."""

        return Handler


@contextmanager
def opa_server(bundle: Bundle) -> Iterator[OpaServer]:
    """A running one; ended with the context."""
    folder = Path(tempfile.mkdtemp(prefix="stockade-opa-"))
    server = OpaServer(bundle, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


async def ready(engine: OpaEngine) -> None:
    """Start it, again until it decides: its server may not have fetched the bundle yet."""
    with anyio.fail_after(READY_SECONDS):
        while not engine.is_ready:
            with suppress(PolicyUnavailable):
                await engine.start()
            await anyio.lowlevel.checkpoint()
