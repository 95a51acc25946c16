"""The jail tier's driver: a Linux userland per sandbox, in about ten milliseconds.

Strength ``full`` (root): a uid, control groups and a bounded tmpfs per sandbox. Strength ``user``: user namespaces,
resource limits inside them, and a watchdog; its bounds on memory and files lag by one look (50 ms).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from sandboxes.driver import Feature, FileInfo, ImageStatus, refuse_missing
from sandboxes.errors import DriverFailed, SandboxClosed, TierUnavailable
from sandboxes.execution import (
    Command,
    ConnectionHandler,
    Event,
    Exited,
    ExitReason,
    Stderr,
    ToolHandler,
    no_connections,
    no_tools,
)
from sandboxes.hostfiles import list_outputs, read_output, stream_output, why_it_stays
from sandboxes.identity import guest_uid
from sandboxes.jail import box as boxes
from sandboxes.jail import cgroups, rootfs
from sandboxes.jail.running import Run
from sandboxes.mounts import unmount_below
from sandboxes.spec import Limits, SandboxSpec, Strength, Tier

IMAGE = "python"
_PROGRAMS = {"bwrap": "bubblewrap", "prlimit": "util-linux", "setpriv": "util-linux"}
_CANCEL_SECONDS = 5.0


class JailSandbox:
    """One live jail. Files in /tmp and /outputs last from command to command; processes do not."""

    def __init__(self, box: boxes.Box) -> None:
        self.label = box.label
        self._box = box
        self._run: Run | None = None
        self._closed = False

    async def execute(
        self, command: Command, tools: ToolHandler = no_tools, connections: ConnectionHandler = no_connections
    ) -> AsyncIterator[Event]:
        """Run to the end. Raises ``DriverFailed``; ``SandboxClosed`` after the end of the sandbox."""
        if self._closed:
            raise SandboxClosed(f"the sandbox {self.label!r} has ended; open another")
        if self._run is not None:
            raise DriverFailed(f"the sandbox {self.label!r} is running a command; wait for its end")
        run = self._run = Run(self._box, command, tools, connections)
        run.start()
        try:
            while True:
                event = await run.next()
                if isinstance(event, Exited):
                    await run.ended()
                    self._run = None
                yield event
                if isinstance(event, Exited):
                    return
        finally:
            if self._run is run:
                run.stop(ExitReason.CANCELLED)
                with anyio.move_on_after(_CANCEL_SECONDS, shield=True):
                    await run.ended()
                self._run = None

    async def cancel(self) -> None:
        """End the running command; nothing to do if none runs."""
        if self._run is not None:
            self._run.stop(ExitReason.CANCELLED)
            await self._run.ended()

    async def outputs(self) -> tuple[FileInfo, ...]:
        """Regular files below /outputs."""
        self._check_open()
        return await to_thread.run_sync(list_outputs, self._box.outputs)

    async def read_output(self, path: str) -> bytes:
        """Bytes of one of them. ``FileNotFoundError`` otherwise."""
        self._check_open()
        return await to_thread.run_sync(read_output, self._box.outputs, path)

    def stream_output(self, path: str) -> AsyncIterator[bytes]:
        """The same in pieces."""
        self._check_open()
        return stream_output(self._box.outputs, path)

    async def freeze(self) -> None:
        """Stop the running command's progress; without one there is nothing to stop."""
        if self._run is not None:
            await self._run.freeze()

    async def thaw(self) -> None:
        """Let it go on."""
        if self._run is not None:
            await self._run.thaw()

    async def end(self) -> None:
        """Kill what runs and refuse what comes. Idempotent."""
        self._closed = True
        await self.cancel()

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxClosed(f"the sandbox {self.label!r} has ended; its files are gone")


class JailDriver:
    """Jails below ``state_dir`` (made if absent; one driver per folder). ``strength`` None: the best the host gives."""

    tier = Tier.JAIL
    features = frozenset(
        {
            Feature.PYTHON,
            Feature.SHELL,
            Feature.ARGV,
            Feature.SUBPROCESSES,
            Feature.PROC,
            Feature.FREEZE,
            Feature.SYMLINKS,
            Feature.FOLDER_INPUTS,
            Feature.STREAMED_STDIN,
            Feature.NETWORK,
        }
    )

    def __init__(self, state_dir: Path, strength: Strength | None = None) -> None:
        self._state_dir = state_dir
        self._hierarchy = _hierarchy()
        if strength is None:
            strength = Strength.USER if isinstance(self._hierarchy, str) else Strength.FULL
        self.strength = strength
        self._live: dict[str, JailSandbox] = {}

    async def probe(self) -> str | None:
        """Run a guest."""
        if reason := await to_thread.run_sync(self._missing):
            return reason
        command = Command(language="python", source="print(6 * 7)")
        said: list[Event] = []
        try:
            async with self.open(SandboxSpec(tier=Tier.JAIL, limits=Limits(wall_seconds=20)), _probe_label()) as box:
                async for event in box.execute(command):
                    said.append(event)
        except (DriverFailed, OSError) as error:
            return f"a guest could not be started: {error}{self._advice()}"
        last = said[-1]
        if isinstance(last, Exited) and last.reason is ExitReason.EXITED and last.code == 0:
            return None
        errors = b"".join(event.data for event in said if isinstance(event, Stderr)).decode(errors="replace")
        return f"a guest was started and failed ({last}): {errors[-300:]}{self._advice()}"

    def images(self) -> tuple[ImageStatus, ...]:
        """The host's own userland, always ready."""
        return (ImageStatus(image=IMAGE, ready=True, fraction=1.0, detail=f"/usr, {rootfs.interpreter().path}"),)

    async def prepare(self, image: str) -> None:
        """Nothing to make. Raises ``TierUnavailable`` for an image it has not."""
        _check_image(image)

    @asynccontextmanager
    async def open(self, spec: SandboxSpec, label: str) -> AsyncIterator[JailSandbox]:
        """A fresh jail, destroyed on exit. Raises ``DriverFailed``."""
        _check_image(spec.image)
        refuse_missing(self, spec)
        if self.strength is Strength.FULL and isinstance(self._hierarchy, str):
            raise TierUnavailable(self._hierarchy)
        hierarchy = None if self.strength is Strength.USER or isinstance(self._hierarchy, str) else self._hierarchy
        with guest_uid(self.strength) as uid:
            make = partial(boxes.create, strength=self.strength, uid=uid, hierarchy=hierarchy)
            box = await to_thread.run_sync(make, self._state_dir, spec, label)
            sandbox = self._live[label] = JailSandbox(box)
            try:
                yield sandbox
            finally:
                with anyio.CancelScope(shield=True):
                    await sandbox.end()
                    self._live.pop(label, None)
                    await to_thread.run_sync(boxes.destroy, box.root, box.group)

    async def reap(self, keep: Collection[str]) -> tuple[str, ...]:
        """Destroy what is not in ``keep``; the labels of what is gone, sorted."""
        gone: list[str] = []
        stay: list[str] = []
        for label, root in await to_thread.run_sync(self._found):
            if label in keep:
                continue
            if label in self._live:
                await self._live[label].end()
            try:
                await to_thread.run_sync(self._destroy_found, root)
            except OSError as error:
                stay.append(why_it_stays(root, error))
            else:
                gone.append(label)
        if stay:
            raise DriverFailed("; ".join(stay))
        return tuple(sorted(gone))

    async def close(self) -> None:
        """End what is live; the owners of the sandboxes see ``CANCELLED``."""
        for sandbox in list(self._live.values()):
            await sandbox.end()

    def _missing(self) -> str | None:
        for program, package in _PROGRAMS.items():
            if shutil.which(program) is None:
                return f"the program {program} is missing; install the package {package}"
        if self.strength is Strength.FULL and isinstance(self._hierarchy, str):
            return self._hierarchy
        return None

    def _advice(self) -> str:
        if self.strength is Strength.FULL:
            return ""
        return (
            "; strength user needs user namespaces (sysctl user.max_user_namespaces above 0, and no AppArmor rule "
            f"against bwrap) and, for a node run by root, that everybody may enter {self._state_dir}"
        )

    def _found(self) -> list[tuple[str, Path]]:
        if not self._state_dir.is_dir():
            return []
        return [
            (str(boxes.read_record(root).get("label", root.name)), root)
            for root in self._state_dir.iterdir()
            if root.is_dir()
        ]

    def _destroy_found(self, root: Path) -> None:
        boxes.kill_recorded(root)
        unmount_below(root)
        group = None if isinstance(self._hierarchy, str) else cgroups.Group(self._hierarchy, f"stockade-{root.name}")
        boxes.destroy(root, group)


def _hierarchy() -> cgroups.Hierarchy | str:
    """What ``full`` builds on, or why it is not to be had."""
    if os.geteuid() != 0:
        return "strength full needs root; run the node as root or use strength user"
    try:
        return cgroups.find(Path("/proc/self/mounts").read_text(), Path("/proc/self/cgroup").read_text())
    except (OSError, ValueError) as error:
        return f"cannot read the host's control groups: {error}"


def _check_image(image: str) -> None:
    if image != IMAGE:
        raise TierUnavailable(f"the jail has no image {image!r}; use {IMAGE!r}")


def _probe_label() -> str:
    return f"probe-{os.getpid()}-{os.urandom(4).hex()}"
