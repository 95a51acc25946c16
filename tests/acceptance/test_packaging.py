"""The wheel carries what the programs read at run time, nothing else, and works where there is no checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.acceptance.cluster import REPOSITORY
from tests.acceptance.standalone import Standalone

OURS = {"controlplane", "dataplane", "policies", "sandboxes", "scheduler", "stockade"}
STRANGERS = ("scheduler", "sandboxes", "policies", "dataplane")
"""Packages of other people on the index whose import names are ours."""


@pytest.fixture(scope="module")
def uv() -> str:
    """The uv of the checkout, as ``make`` puts it there, or the one on the path."""
    own = REPOSITORY / ".uv" / "bin" / "uv"
    found = str(own) if own.exists() else shutil.which("uv")
    if found is None:
        pytest.skip("no uv: `make sync` puts it into .uv/")
    return found


def run(*command: str, **extra: str) -> None:
    """What the cache has is not asked for on the network."""
    for offline in ("1", "0"):
        environment = {**os.environ, "UV_OFFLINE": offline, "UV_PYTHON_DOWNLOADS": "never", **extra}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode == 0:
            return
    raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")


@pytest.fixture(scope="module")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(uv, "build", "--wheel", "-q", "-o", str(folder))
    (built,) = folder.glob("*.whl")
    return built


def carried(folder: Path, *suffixes: str) -> set[str]:
    """Files below a folder of the checkout, as paths of the repository; only what git would keep."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", str(folder)],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = {name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()}
    return {name for name in files if not suffixes or name.endswith(suffixes)}


def test_the_wheel_carries_all_our_packages_whole_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    roots = {name.split("/")[0] for name in names}
    (information,) = roots - OURS
    assert information.endswith(".dist-info")
    expected = {name for package in OURS for name in carried(Path(package))}
    pages = {f"controlplane/problem_pages/{Path(page).name}" for page in carried(Path("docs/problems"))}
    assert {name for name in names if not name.startswith(information)} == expected | pages
    assert len(pages) > 10
    filters = ("sandboxes/jail/seccomp.json", "sandboxes/container/seccomp.json")
    for needed in ("policies/.manifest", "sandboxes/guest/runner.py", *filters):
        assert needed in names
    assert any(re.fullmatch(r"controlplane/migrations/versions/.+\.py", name) for name in names)


def test_the_lock_has_no_stranger_whose_import_name_is_ours() -> None:
    locked = set(re.findall(r'^name = "(.+)"$', (REPOSITORY / "uv.lock").read_text(), re.MULTILINE))
    assert "stockade" in locked and not locked & set(STRANGERS)


def test_the_installed_wheel_runs_hello_without_the_checkout(
    uv: str, wheel: Path, tmp_path: Path, image_cache: Path
) -> None:
    environment = tmp_path / "installed"
    sync = (uv, "sync", "--frozen", "--no-dev", "--extra", "all", "--no-install-project", "-q")
    run(*sync, UV_PROJECT_ENVIRONMENT=str(environment))
    python = environment / "bin" / "python"
    run(uv, "pip", "install", "-q", "--no-deps", "--python", str(python), str(wheel))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(REPOSITORY / "examples" / "hello.json", folder)
    for name in ("json", "secrets", "controlplane"):
        (folder / f"{name}.py").write_text("raise SystemExit('imported from the working directory')\n")
    with Standalone(folder, image_cache, [str(environment / "bin" / "stockade")], checkout=False) as up:
        code = "import json, sys, controlplane; print(json.dumps([controlplane.__file__, sys.path]))"
        found = subprocess.run(
            [str(python), "-P", "-c", code], cwd=folder, env=up.environment, capture_output=True, text=True, check=True
        )
        where, path = json.loads(found.stdout)
        assert where.startswith(str(environment)) and str(REPOSITORY) not in path
        done = up.command("run", "hello.json", "--input", "name=Ada", "--wait")
        assert done.returncode == 0, done.stdout + done.stderr + up.log("control") + up.log("node")
        assert "Ada" in done.stdout
        page = subprocess.run(
            [str(python), "-P", "-c", f"import httpx2; print(httpx2.get('{up.url}/problems/policy-denied').text)"],
            cwd=folder, env=up.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert page.stdout.strip() == (REPOSITORY / "docs" / "problems" / "policy-denied.md").read_text().strip()
        assert up.command("policy", "test").returncode == 0
