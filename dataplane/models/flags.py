"""The flags of an installed server: read from its own ``--help``, once for each version of it, and kept."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataplane.model_wire import Argument, NodeEngine, argument_problem
from dataplane.models.server import LaunchRefused

HELP_SECONDS = 120.0
"""SGLang imports its framework first."""
HELP_MOST_BYTES = 1024 * 1024
_LINE = re.compile(r"^ {0,4}-[-a-zA-Z].*$", re.MULTILINE)
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")

Wish = tuple[str, Argument]


def flags_in(help_text: str) -> frozenset[str]:
    """Names of the flags that a help text lists, without their dashes."""
    return frozenset(name for line in _LINE.findall(help_text) for name in _FLAG.findall(line))


def flags_of(command: Sequence[str], version: str, environment: Mapping[str, str], kept: Path) -> frozenset[str]:
    """Those of a program. Asks it unless ``kept`` has the answer of this version. Blocks. Raises: LaunchRefused."""
    name = hashlib.sha256("\0".join([*command, version]).encode()).hexdigest()[:24]
    path = kept / f"{name}.txt"
    try:
        return flags_in(path.read_text())
    except OSError:
        pass
    try:
        asked = subprocess.run(
            [*command, "--help"], stdin=subprocess.DEVNULL, capture_output=True, timeout=HELP_SECONDS, check=False,
            env=dict(environment),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchRefused(f"{command[0]} --help did not work: {error}") from None
    text = asked.stdout[:HELP_MOST_BYTES].decode(errors="replace")
    if asked.returncode != 0 or not flags_in(text):
        said = asked.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"it ended with {asked.returncode}"]
        raise LaunchRefused(f"{' '.join(command)} --help did not work: {said[0][:300]}")
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(path)
    return flags_in(text)


def arguments(
    engine: NodeEngine,
    version: str,
    flags: frozenset[str],
    *,
    needed: Sequence[Wish],
    usual: Sequence[Wish],
    asked: Mapping[str, Argument],
) -> list[str]:
    """The command line: what must be, what is usual where this version has it, and what the deployment asks for.

    ``asked`` goes over what is usual. ``True`` gives the bare flag, ``False`` leaves it out. Raises: LaunchRefused.
    """
    for name, value in asked.items():
        if why := argument_problem(engine, name, value):
            raise LaunchRefused(f"{why}; take it out of the deployment's args")
    for name in [name for name, _ in needed] + list(asked):
        if name not in flags:
            raise LaunchRefused(f"{engine} {version} has no --{name}; `stockade doctor` shows which version is used")
    wishes = {**{name: value for name, value in usual if name in flags}, **asked, **dict(needed)}
    line: list[str] = []
    for name, value in wishes.items():
        if value is True:
            line.append(f"--{name}")
        elif value is not False:
            line += [f"--{name}", str(value)]
    return line
