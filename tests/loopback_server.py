"""An HTTP server on loopback in the test's own process, for services that write down how they were asked."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

HOST = "127.0.0.1"
HOLD_SECONDS = 120.0


class LoopbackHandler(BaseHTTPRequestHandler):
    """Says nothing, and takes a caller that was killed for an end of its connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one segment: nobody waits for a delayed acknowledgement

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing: what was asked is the log."""


class LoopbackServer:
    """Serves while its context lasts. ``release`` answers what a subclass held back."""

    def __init__(self, handler: type[LoopbackHandler]) -> None:
        self._release = threading.Event()
        self._server = ThreadingHTTPServer((HOST, 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def authority(self) -> str:
        """``host:port``."""
        return f"{HOST}:{self.port}"

    def release(self) -> None:
        """Answer what is held."""
        self._release.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
