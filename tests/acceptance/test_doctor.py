"""``stockade doctor`` on hosts that can do more and less: what it finds, how it says so, and its exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stockade.cli import doctor
from stockade.cli.host_probes import Finding
from stockade.cli.main import main
from tests.acceptance.cluster import REPOSITORY

TIERS = ["wasm", "jail", "container"]
HOST = ["bubblewrap", "namespaces", "cgroups", "opa", "gpus", "sglang", "llamacpp", "disk", "sqlite"]
NAMES = ["python", *TIERS, *HOST]
# A user namespace in which one more may be made, for a user who is not root, and none below that one.
CLOSED = 'echo 1 > /proc/sys/user/max_user_namespaces && exec unshare --user --map-user=1000 --map-group=1000 -- "$@"'


def examine(
    tmp_path: Path, image_cache: Path, *arguments: str, before: tuple[str, ...] = (), **environ: str
) -> subprocess.CompletedProcess[str]:
    images = tmp_path / "cache" / "stockade" / "images"
    images.parent.mkdir(parents=True)
    images.symlink_to(image_cache)
    places = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)}
    return subprocess.run(
        [*before, sys.executable, "-m", "stockade.cli.main", "doctor", *arguments],
        cwd=REPOSITORY, env={**os.environ, **places, **environ}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def found(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    listed = json.loads(done.stdout)
    assert all(bool(one["fix"]) != one["ok"] for one in listed), listed
    return {one["name"]: one for one in listed}


def test_each_finding_has_a_line_and_each_cross_a_fix(tmp_path: Path, image_cache: Path) -> None:
    done = examine(tmp_path, image_cache)
    lines = done.stdout.splitlines()
    marked = [line for line in lines if line[:1] in ("✓", "✗")]
    assert sorted(line[2:18].strip() for line in marked) == sorted(NAMES)
    assert sum(line.startswith("✗") for line in lines) == sum(line.startswith("  FIX ") for line in lines)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_bubblewrap_the_jail_is_absent_and_wasm_weaker(tmp_path: Path, image_cache: Path) -> None:
    done = examine(tmp_path, image_cache, "-o", "json", PATH="/nonexistent")
    about = found(done)
    assert sorted(about) == sorted(NAMES)
    assert about["wasm"]["ok"] and about["wasm"]["detail"].startswith("strength user")
    for name in ("jail", "bubblewrap"):
        assert about[name]["fix"] == "apt-get install bubblewrap"
    assert done.returncode == 0


def test_without_user_namespaces_the_cause_is_named(tmp_path: Path, image_cache: Path) -> None:
    if shutil.which("bwrap") is None or shutil.which("unshare") is None:
        pytest.skip("needs bwrap and unshare")
    before = ("unshare", "--user", "--map-root-user", "--", "/bin/sh", "-c", CLOSED, "sh")
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespace can be made here")
    done = examine(tmp_path, image_cache, "-o", "json", before=before)
    about = found(done)
    assert not about["namespaces"]["ok"] and not about["jail"]["ok"] and not about["cgroups"]["ok"]
    assert "namespace" in about["namespaces"]["detail"]
    assert "container" in about["namespaces"]["fix"]


def test_a_state_folder_that_cannot_be_is_a_failure(tmp_path: Path, image_cache: Path) -> None:
    done = examine(tmp_path, image_cache, "--state-dir", "/proc/stockade")
    assert done.returncode == 1
    assert "✗ disk" in done.stdout and "--state-dir" in done.stdout and "disk" in done.stderr


def finding(name: str, ok: bool) -> Finding:
    return Finding(name=name, ok=ok, detail="tried", fix="do this")


@pytest.mark.parametrize(("tiers", "code"), [([True, False], 0), ([False, False], 1)])
def test_one_tier_is_enough_and_none_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiers: list[bool], code: int
) -> None:
    monkeypatch.setattr(doctor, "_tiers", lambda: [finding(f"tier{index}", ok) for index, ok in enumerate(tiers)])
    assert main(["doctor", "-o", "jsonl"]) == code
    assert json.loads(capsys.readouterr().out.splitlines()[2])["name"] == "tier1"
    assert main(["doctor", "-o", "name"]) == code
    assert "tier1" in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"user.max_user_namespaces": "0"}, "sysctl -w user.max_user_namespaces=10000"),
        ({"kernel.apparmor_restrict_unprivileged_userns": "1"}, "kernel.apparmor_restrict_unprivileged_userns=0"),
        ({"kernel.unprivileged_userns_clone": "1"}, "container"),
    ],
)
def test_the_switch_that_is_off_is_the_one_named(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], fix: str
) -> None:
    monkeypatch.setattr(doctor.host_probes, "_sysctl", lambda name: values.get(name, ""))
    assert fix in doctor.host_probes._open_namespaces()
