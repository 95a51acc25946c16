"""``python -m controlplane``: the control plane as a process, set by ``STOCKADE_*`` variables (``config.py``)."""

from __future__ import annotations

import argparse

import uvicorn

from controlplane.app import create_app
from controlplane.config import Settings

KEEP_ALIVE_SECONDS = 75
STOP_SECONDS = 2


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    _usage().parse_args()
    settings = Settings()
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # Long polls and event streams are cut then: what they told is durable, and clients resume.
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _usage() -> argparse.ArgumentParser:
    """No arguments: ``--help`` lists the variables, and whatever else is typed is refused."""
    lines = [
        f"  STOCKADE_{name.upper():<24} {'' if field.default is None else field.default}"
        for name, field in Settings.model_fields.items()
    ]
    return argparse.ArgumentParser(
        prog="python -m controlplane",
        description="The control plane. It is set by variables; their defaults:",
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


if __name__ == "__main__":
    main()
