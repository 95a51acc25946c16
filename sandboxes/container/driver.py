"""The container tier's driver: any OCI image, in a container per command on this machine's Docker Engine.

Strength ``full`` (root): a uid and a bounded tmpfs per sandbox. Strength ``user`` (somebody the engine lets in): the
node's own uid, and files bounded by a look every 50 ms. Memory, pids and cpu are bounded by the engine in both.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
from anyio import CapacityLimiter, to_thread

from sandboxes.container import box as boxes
from sandboxes.container import selftest
from sandboxes.container.engine import Engine
from sandboxes.container.host_threads import HostThreads
from sandboxes.container.images import Images
from sandboxes.container.launch import Live, Setting
from sandboxes.container.options import RUNSC_NEEDS, Runtime
from sandboxes.container.pool import Pool
from sandboxes.container.remains import Remains
from sandboxes.container.running import Run
from sandboxes.container.spares import SpareKey, SpareMaker, SpareSandbox
from sandboxes.driver import Feature, FileInfo, ImageStatus
from sandboxes.errors import DriverFailed, SandboxClosed, TierUnavailable
from sandboxes.execution import (
    Command,
    ConnectionHandler,
    Event,
    Exited,
    ExitReason,
    Stderr,
    Stdout,
    ToolHandler,
    no_connections,
    no_tools,
)
from sandboxes.hostfiles import PIECE_BYTES, list_outputs, open_output, read_output, why_it_stays
from sandboxes.identity import guest_uid
from sandboxes.spec import FAKE_GPU, Limits, SandboxSpec, Strength, Tier

_CANCEL_SECONDS = 15.0
_MOST_WAITS = 1000  # threads that wait for a container to end; the node's slots bound them long before


class ContainerSandbox:
    """One live sandbox. Files in /tmp and /outputs last from command to command; processes do not."""

    def __init__(self, setting: Setting, spare: Live | None) -> None:
        self.label = setting.box.label
        self._setting = setting
        self._spare = spare
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
        spare, self._spare = self._spare, None
        if command.language != "python" and spare is not None:
            self._spare = spare
            await self._drop_spare()
            spare = None
        run = self._run = Run(self._setting, command, tools, connections, spare)
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
        return await self._setting.files.run(list_outputs, self._setting.box.outputs)

    async def read_output(self, path: str) -> bytes:
        """Bytes of one of them. ``FileNotFoundError`` otherwise."""
        self._check_open()
        return await self._setting.files.run(read_output, self._setting.box.outputs, path)

    def stream_output(self, path: str) -> AsyncIterator[bytes]:
        """The same in pieces."""
        self._check_open()
        return self._stream(path)

    async def _stream(self, path: str) -> AsyncIterator[bytes]:
        file = await self._setting.files.run(open_output, self._setting.box.outputs, path)
        with file:
            while piece := await to_thread.run_sync(file.read, PIECE_BYTES):
                yield piece

    async def freeze(self) -> None:
        """Stop the running command's progress; without one there is nothing to stop."""
        if self._run is not None:
            await self._run.freeze(on=True)

    async def thaw(self) -> None:
        """Let it go on."""
        if self._run is not None:
            await self._run.freeze(on=False)

    async def end(self) -> None:
        """Kill what runs and refuse what comes. Idempotent."""
        self._closed = True
        await self.cancel()
        await self._drop_spare()

    async def _drop_spare(self) -> None:
        """Its Python waits for a job that will not come."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()
            await to_thread.run_sync(self._setting.engine.remove, spare.container)

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxClosed(f"the sandbox {self.label!r} has ended; its files are gone")


class ContainerDriver:
    """Containers whose files are below ``state_dir`` (made if absent; one driver per folder).

    ``runtime`` None: ``runsc`` where the engine has it, else ``runc``; what is taken must then work. ``strength``
    None: the best this user gives. ``address`` None: ``DOCKER_HOST``, else the usual socket. ``pool_size``: spares
    kept for Python without inputs, the most recently used images and limits first.
    """

    tier = Tier.CONTAINER
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
            Feature.GPU,
        }
    )

    def __init__(
        self,
        state_dir: Path,
        *,
        runtime: Runtime | None = None,
        strength: Strength | None = None,
        address: str | None = None,
        pool_size: int = 0,
    ) -> None:
        self._state_dir = state_dir
        self.strength = strength or (Strength.FULL if os.geteuid() == 0 else Strength.USER)
        self._asked = runtime
        self._checked: Runtime | None = None
        self._engine = Engine(address)
        self._images = Images(self._engine)
        self._waits = CapacityLimiter(_MOST_WAITS)
        self._live: dict[str, ContainerSandbox] = {}
        self._remains = Remains(self._engine)
        self._files = HostThreads()
        self._spares = SpareMaker(
            state_dir, self.strength, self._engine, waits=self._waits, remains=self._remains, files=self._files
        )
        self._pool = Pool[SpareKey, SpareSandbox](pool_size, self._make_spare, self._spares.drop)

    @property
    def runtime(self) -> Runtime | None:
        """What containers run on; ``None`` until one was asked for or chosen."""
        return self._checked or self._asked

    async def probe(self) -> str | None:
        """Run a guest: the self-test's own image, so that an engine without images has the tier."""
        said: list[Event] = []
        spec = SandboxSpec(tier=Tier.CONTAINER, image="", limits=Limits(wall_seconds=20))
        command = Command(language="argv", argv=(selftest.PROGRAM,))
        try:
            runtime = await self._taken_runtime()
            image = await to_thread.run_sync(selftest.ensure, self._engine)
            async with self._open(spec, f"probe-{os.getpid()}-{os.urandom(4).hex()}", image) as sandbox:
                async for event in sandbox.execute(command):
                    said.append(event)
            await to_thread.run_sync(self._images.refresh)
        except (DriverFailed, OSError) as error:
            return str(error)
        last = said[-1]
        stdout = b"".join(event.data for event in said if isinstance(event, Stdout))
        if isinstance(last, Exited) and last.reason is ExitReason.EXITED and stdout == selftest.SAYS:
            return None
        errors = b"".join(event.data for event in said if isinstance(event, Stderr)).decode(errors="replace")
        return f"a guest was started on {runtime} and failed ({last}): {errors[-300:]}"

    def images(self) -> tuple[ImageStatus, ...]:
        """What the engine has under names of ours, as last heard; no engine is asked here."""
        return self._images.statuses(self.runtime or "runtime not chosen")

    async def prepare(self, image: str) -> None:
        """Nothing to make. Raises ``TierUnavailable`` for an image the engine has not."""
        await to_thread.run_sync(self._images.resolve, image)
        await to_thread.run_sync(self._images.refresh)

    async def warm(self, spec: SandboxSpec) -> None:
        """Have spares for such sandboxes, as many as the pool may hold, now. Raises ``DriverFailed``."""
        self._pool.want(SpareKey.of(await to_thread.run_sync(self._images.resolve, spec.image), spec.limits))
        await self._pool.settled()

    @asynccontextmanager
    async def open(self, spec: SandboxSpec, label: str) -> AsyncIterator[ContainerSandbox]:
        """A fresh sandbox, destroyed on exit. Raises ``DriverFailed``."""
        image = await to_thread.run_sync(self._images.resolve, spec.image)
        self._check_gpus(spec)
        plain = not (spec.mounts or spec.network or spec.gpus)
        spare = None if not plain else self._pool.take(SpareKey.of(image, spec.limits))
        if spare is None:
            async with self._open(spec, label, image) as sandbox:
                yield sandbox
            return
        with spare.hold:
            try:
                box = await self._files.run(boxes.relabel, spare.setting.box, label, spec.limits)
            except DriverFailed:
                await self._spares.drop(spare)
                raise
            async with self._opened(replace(spare.setting, box=box), spare.live) as sandbox:
                yield sandbox

    @asynccontextmanager
    async def _open(self, spec: SandboxSpec, label: str, image: str) -> AsyncIterator[ContainerSandbox]:
        runtime = await self._taken_runtime()
        owner = await self._owner()
        with guest_uid(self.strength) as uid:
            make = partial(boxes.create, self._state_dir, spec, label, strength=self.strength, uid=uid)
            box = await self._files.run(make)
            setting = Setting(
                engine=self._engine,
                box=box,
                image=image,
                runtime=runtime,
                owner=owner,
                waits=self._waits,
                remains=self._remains,
                files=self._files,
            )
            async with self._opened(setting, None) as sandbox:
                yield sandbox

    @asynccontextmanager
    async def _opened(self, setting: Setting, spare: Live | None) -> AsyncIterator[ContainerSandbox]:
        label = setting.box.label
        sandbox = self._live[label] = ContainerSandbox(setting, spare)
        try:
            yield sandbox
        finally:
            with anyio.CancelScope(shield=True):
                await sandbox.end()
                self._live.pop(label, None)
                await self._files.run(boxes.destroy, setting.box.root)

    def _check_gpus(self, spec: SandboxSpec) -> None:
        fake = [each for each in spec.gpus if each.startswith(FAKE_GPU)]
        if fake and len(fake) < len(spec.gpus):
            raise DriverFailed(f"declared and real GPUs in one sandbox: {', '.join(spec.gpus)}; assign one kind")
        if spec.gpus and not fake and (self._checked or self._asked) == "runsc":
            raise TierUnavailable(
                "containers on runsc are given no GPU; choose: stockade node --container-runtime runc"
            )

    async def _make_spare(self, key: SpareKey) -> SpareSandbox:
        return await self._spares.make(key, await self._taken_runtime(), await self._owner())

    async def _owner(self) -> str:
        """This folder's name on containers; from here on the engine is listened to."""
        if self.strength is Strength.FULL and os.geteuid() != 0:
            raise TierUnavailable("strength full needs root; run the node as root or use strength user")
        owner = await self._files.run(boxes.owner, self._state_dir)
        self._engine.listen(owner, self._images.refresh)
        return owner

    async def reap(self, keep: Collection[str]) -> tuple[str, ...]:
        """Destroy what is not in ``keep``; the labels of what is gone, sorted. Without an engine only the folders."""
        for label, sandbox in list(self._live.items()):
            if label not in keep:
                await sandbox.end()
        spares = frozenset(spare.setting.box.id for spare in self._pool.spares())
        return await self._files.run(self._reap, frozenset(keep), spares)

    async def close(self) -> None:
        """End what is live; the owners of the sandboxes see ``CANCELLED``."""
        for sandbox in list(self._live.values()):
            await sandbox.end()
        await self._pool.close()
        await self._remains.close()
        await to_thread.run_sync(self._engine.close)
        await self._files.close()

    def _reap(self, keep: frozenset[str], spares: frozenset[str]) -> tuple[str, ...]:
        known = {root: boxes.names_of(root) for root in self._state_dir.glob("*/")}
        labels = {own_id: label for label, own_id in known.values()}
        gone = set()
        for container, own_id, paused in self._engine.owned(boxes.owner(self._state_dir)):
            if own_id not in spares and labels.get(own_id, own_id) not in keep:
                self._engine.remove(container, paused=paused)
                gone.add(labels.get(own_id, own_id))
        stay = []
        for root, (label, own_id) in known.items():
            if own_id in spares or label in keep:
                continue
            try:
                boxes.destroy(root)
            except OSError as error:
                stay.append(why_it_stays(root, error))
            else:
                gone.add(label)
        if stay:
            raise DriverFailed("; ".join(stay))
        return tuple(sorted(gone))

    async def _taken_runtime(self) -> Runtime:
        """``runtime``, decided once and checked: never a weaker one because the better one does not work."""
        if self._checked is not None:
            return self._checked
        checked: Runtime = await to_thread.run_sync(self._choose)
        self._checked = checked
        return checked

    def _choose(self) -> Runtime:
        info = self._engine.info()
        security = [str(each) for each in info.get("SecurityOptions") or ()]
        if any(option in each for each in security for option in ("name=rootless", "name=userns")):
            raise TierUnavailable("the engine gives containers other uids (rootless or userns-remap); use one without")
        if not any("name=seccomp" in each for each in security):
            raise TierUnavailable("the engine applies no seccomp profiles; use one built with seccomp")
        offered = info.get("Runtimes") or {}
        runtime: Runtime = self._asked or ("runsc" if "runsc" in offered else "runc")
        if runtime not in offered:
            names = ", ".join(sorted(offered))
            raise TierUnavailable(
                f"the engine has no runtime {runtime}, only {names}; add it to runtimes in its daemon.json"
            )
        if runtime == "runsc":
            given = offered[runtime].get("runtimeArgs") or ()
            if missing := [word for word in RUNSC_NEEDS if word not in given]:
                raise TierUnavailable(
                    f"the engine starts runsc without {' and '.join(missing)}; add it to runtimes.runsc.runtimeArgs in "
                    "its daemon.json, or choose: stockade node --container-runtime runc"
                )
        return runtime
