"""Makes images of sandboxes ready, in the background: those every node offers, and those a step waits for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from sandboxes.driver import Driver
from sandboxes.errors import DriverFailed
from sandboxes.spec import Tier

log = structlog.get_logger("stockade.node")


class ImagePreparation:
    """``told`` is called when one more image is ready."""

    def __init__(self, drivers: Mapping[Tier, Driver], told: Callable[[], None]) -> None:
        self._drivers = drivers
        self._told = told

    async def prepare_usual(self) -> None:
        """What a node offers without being asked: Python in ``wasm``."""
        if Tier.WASM in self._drivers:
            await self.prepare(Tier.WASM, "python")

    async def prepare(self, tier: str, image: str) -> None:
        """One image of a tier; nothing where the node has no such tier, a warning where it fails."""
        driver = next((driver for name, driver in self._drivers.items() if name == tier), None)
        if driver is None:
            return
        try:
            await driver.prepare(image)
            self._told()
        except (DriverFailed, OSError) as error:
            log.warning("image not prepared", tier=tier, image=image, error=str(error))
