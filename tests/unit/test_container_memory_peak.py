"""A container's memory: found under either version of control groups, and never less than was seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxes.container.memory_peak import MemoryPeak


@pytest.mark.parametrize(
    "place",
    [
        "docker/c1/memory.peak",
        "system.slice/docker-c1.scope/memory.peak",
        "memory/docker/c1/memory.max_usage_in_bytes",
        "memory/system.slice/docker-c1.scope/memory.max_usage_in_bytes",
    ],
)
def test_the_highest_mark_that_was_seen_is_kept(place: str, tmp_path: Path) -> None:
    peak = MemoryPeak("c1", tmp_path)
    peak.read()
    assert peak.bytes is None
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("4096\n")
    peak.read()
    (tmp_path / place).write_text("1024\n")
    peak.read()
    assert peak.bytes == 4096
    (tmp_path / place).unlink()
    peak.read()
    assert peak.bytes == 4096
