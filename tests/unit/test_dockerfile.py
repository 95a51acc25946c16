"""The Dockerfiles without Docker: what they copy is made, what they run runs, what they repeat is as elsewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.config import Settings
from stockade.cli import opa_child
from stockade.cli.contexts import DEFAULT_URL
from tests.acceptance.cluster import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text()
FILES = {"stockade": REPOSITORY / "Dockerfile", "opa": REPOSITORY / "deploy" / "opa.Dockerfile"}
TEXT = FILES["stockade"].read_text()


def instructions(name: str, file: str = "stockade") -> list[str]:
    lines = FILES[file].read_text().replace("\\\n", " ").splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(name + " ")]


def variables() -> dict[str, str]:
    return dict(part.split("=", 1) for line in instructions("ENV") for part in shlex.split(line))


@pytest.mark.parametrize("file", FILES)
def test_a_build_needs_the_base_and_what_make_wheels_gathers(file: str) -> None:
    copied = [line.split()[:-1] for line in instructions("COPY", file) if not line.startswith("--from")]
    ours = [[".image/requirements.txt", ".image/wheels/"], [".image/own/"]]
    assert copied == (ours if file == "stockade" else [[".image/opa/"]])
    recipe = MAKEFILE.partition("\nwheels:")[2].partition("\n\n")[0]
    assert all(name.rstrip("/") in recipe for names in copied for name in names)
    ignored = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored == ["*", "!.image"], "nothing else of the checkout is sent to the engine"
    assert ".image/" in (REPOSITORY / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("file", FILES)
def test_every_stage_comes_from_the_base_that_was_given(file: str) -> None:
    (default,) = instructions("ARG", file)
    assert re.fullmatch(r"BASE=python:3\.1[123]-slim", default)
    assert {line.split()[0] for line in instructions("FROM", file)} == {"${BASE}"}
    assert "syntax=" not in FILES[file].read_text(), "a frontend would have to be fetched"


def test_packages_are_for_the_python_of_the_default_base_and_verified() -> None:
    (version,) = re.findall(r"^WHEELS_PYTHON \?= (\S+)$", MAKEFILE, re.MULTILINE)
    assert instructions("ARG") == [f"BASE=python:{version}-slim"]
    locked, own = (line for line in instructions("RUN") if "pip install" in line)
    assert "--no-index" in locked and "--require-hashes" in locked
    assert "--no-index" in own and "--no-deps /own/*.whl" in own


def test_what_the_dockerfile_repeats_agrees_with_its_origin() -> None:
    port = str(Settings.model_fields["port"].default)
    assert instructions("EXPOSE") == [port] and variables()["STOCKADE_PORT"] == port and DEFAULT_URL.endswith(port)
    ours = {name.removeprefix("STOCKADE_").lower() for name in variables() if name.startswith("STOCKADE_")}
    assert ours and ours <= set(Settings.model_fields)


def test_opa_is_started_as_stockade_up_starts_it(tmp_path: Path) -> None:
    asked = opa_child.command(Path("opa"), tmp_path / "opa.sock")
    script = (REPOSITORY / "deploy" / "opa" / "start.sh").read_text().replace("\\\n", " ")
    (started,) = (shlex.split(line) for line in script.splitlines() if line.startswith("exec "))
    places = {"$here/opa": "opa", "unix://$folder/opa.sock": f"unix://{tmp_path}/opa.sock"}
    said = [Path(places.get(word, word)).name if "$here" in word else places.get(word, word) for word in started[1:]]
    assert said == [Path(word).name if word.endswith((".yaml", ".rego")) else word for word in asked]
    (environment,) = instructions("ENV", "opa")
    token_and_url = ("STOCKADE_URL", "STOCKADE_OPA_TOKEN")
    given = {name: value for name, value in opa_child.environment("", "").items() if name not in token_and_url}
    assert dict(part.split("=", 1) for part in environment.split()) == given


@pytest.mark.parametrize("file", FILES)
def test_it_runs_as_a_user_who_owns_what_volumes_are_mounted_on(file: str) -> None:
    (user,) = instructions("USER", file)
    (made,) = (line for line in instructions("RUN", file) if "useradd" in line)
    assert f"--uid 10001 {'' if file == 'opa' else '--home-dir /var/lib/stockade '}--no-create-home {user}" in made
    folders = {"/run/stockade/opa"} if file == "opa" else {*instructions("VOLUME"), *map(variables().get, ("HOME",))}
    for folder in folders:
        assert re.search(rf"install -d -o {user} -g {user} -m 0700 .*{folder}\b", made)
    if file == "stockade":
        assert all(variables()[name].startswith("/var/lib/stockade") for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"))


@pytest.mark.parametrize("file", FILES)
def test_it_says_what_it_is_and_how_it_is(file: str) -> None:
    label = instructions("LABEL", file)[-1]
    assert dict(part.split("=", 1) for part in shlex.split(label))["org.opencontainers.image.licenses"] == "Apache-2.0"
    (check,) = instructions("HEALTHCHECK", file)
    command = json.loads(check.partition(" CMD ")[2])
    assert command[0] in ("python", "python3"), "there is no curl"
    if file == "opa":
        assert (REPOSITORY / "deploy" / "opa" / Path(command[1]).name).is_file()


@pytest.mark.parametrize("named", ["the control plane", "a node", "its health"])
def test_its_commands_run(named: str) -> None:
    if named == "a node":
        (shown,) = re.findall(r"IMAGE (stockade node .*)$", TEXT, re.MULTILINE)
        command = ["-m", "stockade.cli.main", *shlex.split(shown)[1:]]
    else:
        (line,) = instructions("CMD") if named == "the control plane" else instructions("HEALTHCHECK")
        program, *command = json.loads(line[line.index("[") :])
        assert program == "python"
    done = subprocess.run(
        [sys.executable, *command, *([] if named == "its health" else ["--help"])], cwd=REPOSITORY, text=True,
        capture_output=True, timeout=60, check=False, env={**os.environ, "STOCKADE_PORT": "1"},
    )  # fmt: skip
    if named == "its health":
        assert done.returncode == 1 and '"ready": false' in done.stdout, "nothing listens here"
        return
    assert done.returncode == 0 and "sage: " in done.stdout, done.stderr
    refused = subprocess.run(
        [sys.executable, *command, "--no-such-flag"], cwd=REPOSITORY, capture_output=True, timeout=60, check=False
    )
    assert refused.returncode == 2
