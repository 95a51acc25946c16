"""Which control groups a host offers, and the bounds written there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxes.jail.cgroups import Group, Hierarchy, find, settings
from sandboxes.spec import Limits

LIMITS = Limits(memory_bytes=1000, pids=10, cpu=0.5)


def v1_mounts(root: Path) -> str:
    return "".join(
        f"cgroup {root}/{name} cgroup rw,relatime,{name} 0 0\n" for name in ("memory", "pids", "cpu", "freezer")
    )


def test_v1_groups_go_below_our_own(tmp_path: Path) -> None:
    (tmp_path / "memory" / "node").mkdir(parents=True)
    found = find(v1_mounts(tmp_path), "4:memory:/node\n3:pids:/gone\n0::/\n")
    assert isinstance(found, Hierarchy)
    assert found.version == 1
    assert found.folders["memory"] == tmp_path / "memory" / "node"
    assert found.folders["pids"] == tmp_path / "pids"  # its path lies outside this container's mount


def test_v2_needs_its_controllers(tmp_path: Path) -> None:
    mounts = f"cgroup2 {tmp_path} cgroup2 rw 0 0\n"
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    lacking = find(mounts, "0::/\n")
    assert isinstance(lacking, str)
    assert "pids" in lacking
    assert "Delegate=yes" in lacking
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids io\n")
    found = find(mounts, "0::/\n")
    assert isinstance(found, Hierarchy)
    assert found.version == 2
    assert Group(found, "box").folders == (tmp_path / "box",)


def test_v2_groups_go_beside_the_leaf_we_moved_to(tmp_path: Path) -> None:
    leaf = tmp_path / "node.service" / "stockade-host"
    leaf.mkdir(parents=True)
    (leaf.parent / "cgroup.controllers").write_text("cpu memory pids")
    found = find(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n", "0::/node.service/stockade-host\n")
    assert isinstance(found, Hierarchy)
    assert found.folders["memory"] == leaf.parent


def test_no_control_groups_is_a_reason() -> None:
    reason = find("proc /proc proc rw 0 0\n", "0::/\n")
    assert isinstance(reason, str)
    assert "memory" in reason


def test_bounds_allow_no_swap() -> None:
    v1 = {name: value for _, name, value in settings(1, LIMITS)}
    assert v1["memory.limit_in_bytes"] == v1["memory.memsw.limit_in_bytes"] == "1000"
    assert v1["cpu.cfs_quota_us"] == "50000"
    v2 = {name: value for _, name, value in settings(2, LIMITS)}
    assert v2["memory.swap.max"] == "0"
    assert v2["cpu.max"] == "50000 100000"
    assert v1["pids.max"] == v2["pids.max"] == "12"


@pytest.mark.parametrize(("version", "names"), [(1, ("memory", "pids", "cpu", "freezer")), (2, ("memory", "pids"))])
def test_a_group_that_is_gone_is_neither_frozen_nor_thawed(
    version: int, names: tuple[str, ...], tmp_path: Path
) -> None:
    group = Group(Hierarchy(version=version, folders={name: tmp_path / name for name in names}), "box")
    group.freeze()
    group.thaw()
