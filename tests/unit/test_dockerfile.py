"""The Dockerfile without Docker: what it copies exists, what it runs runs, what it repeats agrees with its origin."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch

import pytest

from controlplane.config import Settings
from stockade.cli.contexts import DEFAULT_URL
from tests.acceptance.cluster import REPOSITORY

TEXT = (REPOSITORY / "Dockerfile").read_text()
LINES = TEXT.replace("\\\n", " ").splitlines()


def instructions(name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in LINES if line.startswith(name + " ")]


def variables() -> dict[str, str]:
    return dict(part.split("=", 1) for line in instructions("ENV") for part in shlex.split(line))


def test_every_copied_file_is_there_and_not_kept_out() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    copied = [line.split()[:-1] for line in instructions("COPY") if not line.startswith("--from")]
    assert copied == [["pyproject.toml", "uv.lock", "README.md", "LICENSE"], ["."]]
    for name in copied[0]:
        assert (REPOSITORY / name).is_file() and not any(fnmatch(name, pattern) for pattern in ignored)
    for name in ("docs/problems", "policies/.manifest", "controlplane/migrations"):
        assert (REPOSITORY / name).exists() and not any(fnmatch(name, f"{pattern}*") for pattern in ignored)


def test_both_stages_come_from_the_base_that_was_given() -> None:
    (default,) = instructions("ARG")
    assert re.fullmatch(r"BASE=python:3\.1[123]-slim", default)
    assert instructions("FROM") == ["${BASE} AS build", "${BASE}"]


def test_what_the_dockerfile_repeats_agrees_with_its_origin() -> None:
    (pinned,) = re.findall(r"^UV_VERSION := (\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert f"uv=={pinned}" in TEXT
    port = str(Settings.model_fields["port"].default)
    assert instructions("EXPOSE") == [port] and variables()["STOCKADE_PORT"] == port and DEFAULT_URL.endswith(port)
    ours = {name.removeprefix("STOCKADE_").lower() for name in variables() if name.startswith("STOCKADE_")}
    assert ours and ours <= set(Settings.model_fields)


def test_it_runs_as_a_user_who_owns_the_volume() -> None:
    (user,) = instructions("USER")
    (volume,) = instructions("VOLUME")
    assert any("useradd" in line and line.endswith(user) and volume in line for line in instructions("RUN"))
    assert all(variables()[name].startswith(volume) for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"))


@pytest.mark.parametrize("named", ["the control plane", "a node"])
def test_its_commands_run(named: str) -> None:
    if named == "a node":
        (shown,) = re.findall(r"IMAGE (stockade node .*)$", TEXT, re.MULTILINE)
        command = ["-m", "stockade.cli.main", *shlex.split(shown)[1:]]
    else:
        (given,) = instructions("CMD")
        program, *command = json.loads(given)
        assert program == "python"
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and "sage: " in done.stdout, done.stderr
    refused = subprocess.run(
        [sys.executable, *command, "--no-such-flag"], cwd=REPOSITORY, capture_output=True, timeout=60, check=False
    )
    assert refused.returncode == 2
