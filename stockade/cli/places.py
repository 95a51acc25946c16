"""Where this user's state and caches are kept, by the XDG rules."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def state_dir(given: Path | None) -> Path:
    """Databases, keys and node state."""
    return (given or _base("XDG_DATA_HOME", ".local/share") / "stockade").absolute()


def image_cache(given: Path | None) -> Path:
    """Prepared images, shared by every node of this user; safe to delete."""
    return (given or _base("XDG_CACHE_HOME", ".cache") / "stockade" / "images").absolute()


def component(name: str) -> Path | None:
    """A program that ``make components`` installed, or else one on PATH."""
    found = shutil.which(name, path=components() / "bin") or shutil.which(name)
    return Path(found).absolute() if found else None


def components() -> Path:
    """What ``make components`` fills."""
    given = os.environ.get("STOCKADE_COMPONENTS")
    return (Path(given) if given else _base("XDG_DATA_HOME", ".local/share") / "stockade" / "components").absolute()


def _base(variable: str, below_home: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / below_home)
