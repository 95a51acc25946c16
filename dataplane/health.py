"""``python -m dataplane.health STATE_DIR``: whether the node of that state folder is alive and heard, for probes.

A node listens nowhere, so its heartbeats are looked at: the daemon touches ``heard`` when one is acknowledged.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HEARD = "heard"
MOST_SECONDS = 30.0


def failure(state_dir: Path, most_seconds: float = MOST_SECONDS) -> str | None:
    """Why it is unhealthy; None if its last acknowledged heartbeat is at most ``most_seconds`` old."""
    try:
        age = time.time() - (state_dir / HEARD).stat().st_mtime
    except OSError as error:
        return f"the control plane has never acknowledged a heartbeat: {error}"
    if age > most_seconds:
        return f"the control plane acknowledged the last heartbeat {age:.0f} s ago"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m dataplane.health", description="Whether a node is heard.")
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("--most-seconds", type=float, default=MOST_SECONDS, help="age of the last heartbeat")
    given = parser.parse_args(argv)
    why = failure(given.state_dir, given.most_seconds)
    print(why or "heard")
    return 0 if why is None else 1


if __name__ == "__main__":
    sys.exit(main())
