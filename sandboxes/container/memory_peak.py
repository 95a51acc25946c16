"""How much memory a container held at most: the kernel's own high-water mark, read while its control group is there.

The engine removes the group with the container's last process, so the mark is read every 50 ms and once more when the
container's streams end. What the last moment added between those may be missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


class MemoryPeak:
    """Of one container. ``read`` blocks; ``bytes`` is ``None`` while nothing could be read."""

    def __init__(self, container: str, root: Path = _ROOT) -> None:
        self._container, self._root = container, root
        self._place: Path | None = None
        self.bytes: int | None = None

    def read(self) -> None:
        """Look once more."""
        for place in self._places():
            try:
                seen = int(place.read_text())
            except (OSError, ValueError):
                continue
            self._place = place
            self.bytes = max(self.bytes or 0, seen)
            return

    def _places(self) -> Iterator[Path]:
        """Where the mark may be: both versions of control groups, both of the engine's drivers for them."""
        if self._place is not None:
            yield self._place
            return
        for group in (f"docker/{self._container}", f"system.slice/docker-{self._container}.scope"):
            yield self._root / group / "memory.peak"
            yield self._root / "memory" / group / "memory.max_usage_in_bytes"
