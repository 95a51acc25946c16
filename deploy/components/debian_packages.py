"""Programs that Debian's own packages are good enough for: docker-compose 1.29, bubblewrap, debootstrap."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence

import store
from component import State

_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_UNATTENDED = {"DEBIAN_FRONTEND": "noninteractive"}


class DebianPackages:
    """``packages`` bring ``programs``. The first, asked with ``asks``, says its version: ``expects``' first group."""

    def __init__(self, name: str, packages: Sequence[str], programs: Sequence[str], *, asks: str, expects: str) -> None:
        self.name = name
        self._packages = packages
        self._programs = programs
        self._asks = asks
        self._expects = expects

    def state(self) -> State:
        """Here if all are there and the first is of a version we expect."""
        places = [shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}") for name in self._programs]
        if None in places:
            missing = [name for name, place in zip(self._programs, places, strict=True) if place is None]
            return State(version="Debian's", why=f"there is no program {', '.join(missing)}")
        first = str(places[0])
        found = re.search(self._expects, store.answer([first, self._asks]))
        if found is None:
            return State(version="Debian's", why=f"{first} does not run here, or is another version")
        return State(version=found[1], path=first, detail=", ".join(str(place) for place in places[1:]))

    def install(self) -> None:
        """By apt-get, as root. Raises: ComponentFailed."""
        if not self.state().path:
            install_packages(self.name, self._packages)


def install_packages(name: str, packages: Sequence[str]) -> None:
    """Debian packages and what they need, nothing recommended. Raises: ComponentFailed."""
    if os.geteuid() != 0:
        raise store.ComponentFailed(f"installing {', '.join(packages)} needs root", "run this as root")
    if shutil.which("apt-get") is None:
        raise store.ComponentFailed("this is no Debian", f"install {', '.join(packages)} your system's way")
    # Two components at once wait for each other, and what a killed installation half configured is configured first.
    with store.only_one("apt"):
        store.run(name, ["dpkg", "--configure", "-a"], _UNATTENDED)
        store.run(name, ["apt-get", "update", "-qq"], _UNATTENDED)
        command = ["apt-get", "-o", "DPkg::Lock::Timeout=120", "install", "-y", "-qq", "--no-install-recommends"]
        store.run(name, [*command, *packages], _UNATTENDED)
