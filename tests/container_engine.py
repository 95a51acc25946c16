"""A Docker Engine for tests: skipped with the probe's own reason where there is none, failed where it is required."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import anyio

from sandboxes.container.driver import ContainerDriver
from tests import required

NO_IMAGE = "the engine has no image 'python'; run `make image`"


@cache
def absent() -> str | None:
    """Why no container with Python runs here."""

    async def ask() -> str | None:
        with tempfile.TemporaryDirectory(prefix="stockade-test-") as folder:
            driver = ContainerDriver(Path(folder), runtime="runc")
            try:
                if reason := await driver.probe():
                    return reason
                return None if any(one.image == "python" for one in driver.images()) else NO_IMAGE
            finally:
                await driver.close()

    return anyio.run(ask)


def require() -> None:
    """Call it in a fixture."""
    if (reason := absent()) is not None:
        required.absent("container", reason)
