"""Names of images, and the digests behind them. A name is a repository of the engine, ``stockade/NAME:current``.

What runs is the digest a name had when the sandbox was opened; ``NAME@sha256:…`` insists on one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from sandboxes.container.engine import Engine
from sandboxes.driver import ImageStatus
from sandboxes.errors import DriverFailed, TierUnavailable

NAME = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_REPOSITORY, _TAG = "stockade/", "current"


@dataclass(frozen=True, kw_only=True)
class Image:
    """``digest`` is the engine's id: the hash of configuration and layers."""

    name: str
    digest: str
    size_bytes: int


def reference(name: str) -> str:
    """What the engine calls ``name``. Raises ``DriverFailed`` for what it could not call anything."""
    if not NAME.fullmatch(name) or len(name) > 64:
        raise DriverFailed(f"{name!r} is no name for an image; use small letters, digits and single . _ - between")
    return f"{_REPOSITORY}{name}:{_TAG}"


def listed(engine: Engine) -> tuple[Image, ...]:
    """Every image with a name of ours, sorted. Blocks."""
    found = []
    for each in engine.images(f"{_REPOSITORY}*:{_TAG}"):
        for tag in each.get("RepoTags") or ():
            if tag.startswith(_REPOSITORY) and tag.endswith(f":{_TAG}"):
                name = tag[len(_REPOSITORY) : -len(_TAG) - 1]
                found.append(Image(name=name, digest=str(each["Id"]), size_bytes=int(each["Size"])))
    return tuple(sorted(found, key=lambda image: image.name))


class Images:
    """What is there, remembered, because the node asks often and must not wait for the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: Mapping[str, Image] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Look again. Blocks. Raises ``DriverFailed``."""
        with self._lock:
            self._known = {image.name: image for image in listed(self._engine)}

    def statuses(self, runtime: str) -> tuple[ImageStatus, ...]:
        """Each image by name, and by name and digest."""
        return tuple(
            ImageStatus(image=said, ready=True, fraction=1.0, detail=f"{runtime}, {image.digest[:19]}")
            for image in self._known.values()
            for said in (image.name, f"{image.name}@{image.digest}")
        )

    def resolve(self, image: str) -> str:
        """The digest to run. Blocks. Raises ``TierUnavailable`` with what there is."""
        name, _, wanted = image.partition("@")
        digest = self._engine.image_id(reference(name))
        if digest is None:
            have = ", ".join(self._known) or "none"
            raise TierUnavailable(
                f"the engine has no image {name!r}, only: {have}; make it with `stockade image build {name}` "
                f"or `stockade image import {name} ARCHIVE`"
            )
        if wanted and wanted != digest:
            raise TierUnavailable(f"the image {name!r} is {digest} here, not {wanted}; import that one")
        if self._engine.image_config(digest).get("Volumes"):
            # The engine would make them on its own disk, writable and without bound.
            raise TierUnavailable(f"the image {name!r} declares volumes; build or import it with `stockade image`")
        return digest
