"""Whether OPA answers on its socket and has the bundle; the exit status says so. Standard library only."""

from __future__ import annotations

import http.client
import os
import socket
import sys

FOLDER = os.environ.get("STOCKADE_OPA_FOLDER", "/run/stockade/opa")


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(3.0)
        self.sock.connect(f"{FOLDER}/opa.sock")


connection = _UnixConnection("opa")
try:
    connection.request("GET", "/health?bundles")
    status = connection.getresponse().status
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"OPA does not answer: {error}")
finally:
    connection.close()
sys.exit(0 if status == 200 else f"OPA has no bundle yet: HTTP {status}")
