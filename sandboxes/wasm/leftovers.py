"""What a process that is gone left behind: folders, and workers that somehow outlived it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from sandboxes.hostfiles import remove_tree, why_it_stays
from sandboxes.jail.processes import start_time
from sandboxes.mounts import unmount_below

_START_SECONDS = 60.0
"""No worker takes longer from its folder to its record."""


def leftovers(state_dir: Path, keep: frozenset[str], spare: frozenset[str]) -> tuple[list[str], list[str]]:
    """Destroy workers whose label is not in ``keep``: their labels, and a line for each folder that stays.

    ``spare`` are folder names to leave alone. Workers nobody claimed go only when the process that started them is
    gone. Blocks.
    """
    labels: list[str] = []
    stay: list[str] = []
    for folder in state_dir.iterdir():
        if folder.name in spare or folder.is_symlink() or not folder.is_dir():
            continue
        record = _record(folder)
        label = record.get("label", "")
        owned = _alive(record.get("owner"), record.get("owner_start")) if record else _starting(folder)
        if label in keep or (not label and owned):
            continue
        if _alive(record.get("pid"), record.get("start")):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record["pid"], signal.SIGKILL)
        unmount_below(folder)
        try:
            remove_tree(folder)
        except OSError as error:
            stay.append(why_it_stays(folder, error))
            continue
        if label:
            labels.append(label)
    return labels, stay


def _starting(folder: Path) -> bool:
    """Whether a folder without a record may get one yet; else a removal was cut short."""
    with contextlib.suppress(FileNotFoundError):
        return time.time() - folder.stat().st_mtime < _START_SECONDS
    return False


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "record.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _alive(pid: Any, start: Any) -> bool:
    """Whether the process of that id and start time lives: an id alone may have been given to another."""
    return isinstance(pid, int) and isinstance(start, int) and start_time(pid) == start
