"""What a command must be before a tier that starts programs will start it."""

from __future__ import annotations

import re

from sandboxes.errors import DriverFailed
from sandboxes.execution import Command

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def refuse_unlaunchable(command: Command) -> None:
    """Raise ``DriverFailed`` for a variable no shell can name, a NUL byte, or nothing to run."""
    for name in command.env:
        if not _VARIABLE.fullmatch(name):
            raise DriverFailed(f"{name!r} is no name for an environment variable; use letters, digits and _")
    if any("\0" in text for text in (command.source, *command.argv, *command.env.values())):
        raise DriverFailed("a NUL byte in the command; remove it")
    if command.language == "argv" and not command.argv:
        raise DriverFailed("the command's argv is empty; name a program")
