"""Whether there is a Docker Engine to ask at all. Imports nothing: most hosts have none."""

from __future__ import annotations

import os
import stat
from pathlib import Path

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
START = (
    "install one (apt-get install docker.io) and start it (systemctl start docker, or dockerd by hand), "
    "or name its socket in DOCKER_HOST"
)


def address() -> str:
    """``DOCKER_HOST``, else the usual socket."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_ADDRESS


def absent(where: str | None = None) -> str | None:
    """Why no engine can answer at ``where``, with the fix; ``None`` if one may."""
    where = where or address()
    if not where.startswith("unix://"):
        return f"the engine at {where} may be another machine; name a unix:// socket in DOCKER_HOST"
    path = Path(where.removeprefix("unix://"))
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return f"{path} is no socket; {START}"
    except OSError as error:
        return f"there is no Docker Engine at {path} ({error.strerror}); {START}"
    if not os.access(path, os.R_OK | os.W_OK):
        return f"this user may not use the Docker Engine at {path}; add it to the group docker, or run the node as root"
    return None
