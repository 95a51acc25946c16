"""``python -m controlplane``: the control plane as a process, set by ``STOCKADE_*`` variables (``config.py``)."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette

from controlplane.app import create_app
from controlplane.config import Settings, SettingsRefused, from_environment
from controlplane.engine import Engine
from controlplane.logs import configure_logs
from controlplane.state_lock import ALREADY_RUNNING, AlreadyRunning, hold_state
from controlplane.store import Store, newest_revision
from dataplane.config import is_loopback
from dataplane.tunnel.frames import MESSAGE_BYTES_MOST

KEEP_ALIVE_SECONDS = 75
STOP_SECONDS = 2
STARTUP_FAILED = 3
USAGE = 2


class _Server(uvicorn.Server):
    """Ends long polls and event streams first: what they told is durable, and their readers come back."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What the start made lives as long as the process: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        engine: Engine = self._app.state.services.engine
        engine.inventory.close()
        engine.controller.hub.close()
        await super().shutdown(sockets)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    os.umask(0o077)  # what is kept here is nobody else's to read
    role = _usage().parse_args().role
    configure_logs()
    try:
        settings = from_environment()
        if role == "gateway":
            _run(uvicorn.Server(_configured(_gateway(settings), settings)))
            return
        with hold_state(settings.root, settings.url):
            _serve(settings)
    except SettingsRefused as refused:
        print(f"error: {refused}", file=sys.stderr)
        raise SystemExit(USAGE) from None
    except AlreadyRunning as running:
        print(f"error: the control plane is {running}", file=sys.stderr)
        raise SystemExit(ALREADY_RUNNING) from None


def _serve(settings: Settings) -> None:
    _migrate(settings.database)
    app = create_app(settings)
    _run(_Server(_configured(app, settings), app))


def _migrate(database: Path) -> None:
    """In a process of its own, so that this one never holds what only migrating needs. If that fails, the start does
    it again and says why."""
    store = Store(database)
    try:
        if store.revision() == newest_revision():
            return
    finally:
        store.close()
    safe_path = ["-P"] if sys.flags.safe_path else []
    subprocess.run([sys.executable, *safe_path, "-m", "controlplane.migrations", str(database)], check=False)


def _gateway(settings: Settings) -> Starlette:
    """Raises: SettingsRefused."""
    from controlplane.inference.gateway.role import create_gateway

    parts = urlsplit(settings.control_plane_url)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))):
        said = "a gateway needs its control plane: https://HOST[:PORT], or http:// on loopback"
        raise SettingsRefused(f"STOCKADE_CONTROL_PLANE_URL={settings.control_plane_url!r}: {said}")
    try:
        token = settings.gateway_token.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        said = f"cannot be read ({type(error).__name__}); copy gateway.token of the control plane's state directory"
        raise SettingsRefused(f"STOCKADE_GATEWAY_TOKEN_FILE={str(settings.gateway_token)!r}: {said}") from None
    return create_gateway(settings, token)


def _configured(app: FastAPI | Starlette, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_certificate_file,
        ssl_keyfile=settings.tls_key_file,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=MESSAGE_BYTES_MOST,
        ws_per_message_deflate=False,
        ws_ping_interval=10.0,
        ws_ping_timeout=10.0,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _run(server: uvicorn.Server) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise SystemExit(STARTUP_FAILED)


def _usage() -> argparse.ArgumentParser:
    """One argument, the role: ``--help`` lists the variables, and whatever else is typed is refused."""
    lines = [
        f"  STOCKADE_{name.upper():<24} {'' if field.default in (None, ()) else field.default}"
        for name, field in Settings.model_fields.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m controlplane",
        description="The control plane, or a gateway of its own. It is set by variables; their defaults:",
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("role", nargs="?", choices=("control-plane", "gateway"), default="control-plane")
    return parser


if __name__ == "__main__":
    main()
