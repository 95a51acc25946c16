"""deploy/compose*.yaml without an engine: both generations of Compose take them, and what they relax is stated."""

from __future__ import annotations

import json
import subprocess

import pytest

from stockade.cli import places
from tests.acceptance.cluster import REPOSITORY
from tests.required import absent

DEPLOY = REPOSITORY / "deploy"
GUEST = json.loads((REPOSITORY / "sandboxes" / "container" / "seccomp.json").read_text())
NODE = json.loads((DEPLOY / "seccomp-node.json").read_text())
FOR_WALLS = {
    *("capset", "clone", "memfd_create", "mount", "pivot_root", "setgid", "setgroups", "sethostname", "setns"),
    *("setregid", "setresgid", "setresuid", "setreuid", "setuid", "umount2", "unshare"),
}


@pytest.mark.parametrize("program", ["docker-compose", "compose-v2"])
def test_compose_takes_the_files(program: str) -> None:
    found = places.component(program)
    if found is None:
        absent("compose", f"there is no program {program} (make components-compose components-compose-v2)")
    names = ["compose.yaml", "compose.jail.yaml"] if program == "compose-v2" else ["compose.yaml"]
    files = [word for name in names for word in ("-f", str(DEPLOY / name))]
    done = subprocess.run(
        [found, *files, "config"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "obsolete" not in done.stderr and "Unsupported" not in done.stderr
    assert "docker.sock" not in done.stdout and "privileged" not in done.stdout


def test_a_node_with_walls_may_make_what_a_guest_may_and_namespaces() -> None:
    assert NODE["defaultAction"] == "SCMP_ACT_ERRNO"

    def always(profile: dict[str, object]) -> set[str]:
        entries: list[dict[str, object]] = profile["syscalls"]  # type: ignore[assignment]
        return {
            str(name)
            for entry in entries
            if entry["action"] == "SCMP_ACT_ALLOW" and not entry.get("args")
            for name in entry["names"]  # type: ignore[attr-defined]
        }

    assert always(NODE) == (always(GUEST) - {"clone3"}) | FOR_WALLS


def test_the_overlay_names_its_profile_and_says_why() -> None:
    text = (DEPLOY / "compose.jail.yaml").read_text()
    assert 'security_opt: ["seccomp=./seccomp-node.json", "systempaths=unconfined"]' in text
    said = text.partition("services:")[0]
    assert all(f"#   {word} " in said for word in ("seccomp", "systempaths"))
