"""Finds readable log files below folders and prints the example's input: their ``data://`` addresses.

    python examples/incident-triage/shards.py setup=.stockade/demo/setup system=/var/log > input.json

Only text is taken, the largest first, at most ``MOST`` files and ``LARGEST_BYTES`` each; nothing is made up.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

MOST = 12
LARGEST_BYTES = 32 * 1024 * 1024
QUESTION = "What failed on this machine while it was set up?"


def shards(roots: dict[str, Path]) -> list[str]:
    """Addresses of the log files below ``roots``, largest first, those of every root among them."""
    found: list[tuple[int, str]] = []
    for name, root in roots.items():
        own = sorted(((path.stat().st_size, path) for path in _logs(root)), reverse=True)
        found += [(size, f"data://{name}/{path.relative_to(root)}") for size, path in own[: MOST // len(roots)]]
    return [address for _, address in sorted(found, reverse=True)]


def _logs(root: Path) -> list[Path]:
    return [
        path
        for path in root.rglob("*.log")
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)
        and 0 < path.stat().st_size <= LARGEST_BYTES
    ]  # fmt: skip


if __name__ == "__main__":
    given = (argument.partition("=") for argument in sys.argv[1:])
    print(json.dumps({"question": QUESTION, "logs": shards({name: Path(path) for name, _, path in given})}))
