"""What a process that is gone left behind: folders, and workers that somehow outlived it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from sandboxes.hostfiles import remove_tree
from sandboxes.jail.processes import start_time
from sandboxes.wasm.tmpfs import detach


def leftovers(state_dir: Path, keep: frozenset[str], spare: frozenset[str]) -> list[str]:
    """Destroy recorded workers whose label is not in ``keep``; their labels come back.

    ``spare`` are folder names to leave alone. Workers nobody claimed go only when the process that started them is
    gone. Blocks.
    """
    labels = []
    for folder in state_dir.iterdir():
        if folder.name in spare:
            continue
        record = _record(folder)
        label = record.get("label", "")
        owned = _alive(record.get("owner"), record.get("owner_start"))
        if label in keep or (not label and (owned or not record)):
            continue
        if _alive(record.get("pid"), record.get("start")):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record["pid"], signal.SIGKILL)
        detach(folder / "root" / "rw")
        remove_tree(folder)
        if label:
            labels.append(label)
    return labels


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "record.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _alive(pid: Any, start: Any) -> bool:
    """Whether the process of that id and start time lives: an id alone may have been given to another."""
    return isinstance(pid, int) and isinstance(start, int) and start_time(pid) == start
