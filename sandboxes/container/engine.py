"""The Docker Engine, through the ``docker`` package: blocking calls (use worker threads), one failure type.

Events arrive on a thread of their own: which container the kernel killed something in for memory, which only the
engine knows once the container is gone, and when images come or go.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from sandboxes.container import presence
from sandboxes.container.options import OWNER_LABEL, SANDBOX_LABEL
from sandboxes.errors import DriverFailed, TierUnavailable

_CALL_SECONDS = 60
_CHUNK = 1024 * 1024
_CONNECTIONS = 64
_RECONNECT_SECONDS = 0.5
_GPU_FIX = "the engine needs the package nvidia-container-toolkit: nvidia-ctk runtime configure --runtime=docker"


class Engine:
    """One engine on this machine. Connects at the first call. Every method raises ``DriverFailed``."""

    def __init__(self, address: str | None = None) -> None:
        self.address = address or presence.address()
        self._client: Any = None
        self._lock = threading.Lock()
        self._on_oom: dict[str, Callable[[], None]] = {}
        self._listener: threading.Thread | None = None
        self._stream: Any = None
        self._closed = threading.Event()

    def client(self) -> Any:
        """The low-level client. Raises ``TierUnavailable`` with the fix where no engine answers."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        if why := presence.absent(self.address):
            raise TierUnavailable(why)
        try:
            return docker.APIClient(
                base_url=self.address, version="auto", timeout=_CALL_SECONDS, max_pool_size=_CONNECTIONS
            )
        except (DockerException, requests.RequestException, OSError) as error:
            raise TierUnavailable(
                f"no Docker Engine answers at {self.address} ({_cause(error)}); {presence.START}"
            ) from error

    # --- containers

    def create(self, body: Mapping[str, Any], name: str) -> str:
        """A container that has not started; its id. Without ``name`` the engine gives one."""
        with _translated("create a container"):
            made = self.client().create_container_from_config(dict(body), name=name or None)
        return str(made["Id"])

    def attach(self, container: str, *, stdin: bool) -> socket.socket:
        """The container's streams, from its first byte on if it has not started. The caller closes it."""
        with _translated("attach to a container"):
            params = {"stdin": int(stdin), "stdout": 1, "stderr": 1, "stream": 1, "logs": 0}
            raw = self.client().attach_socket(container, params)
            below = getattr(raw, "_sock", raw)  # which the stream's own close leaves open
            ours = socket.socket(fileno=os.dup(raw.fileno()))
            raw.close()
            below.close()
        ours.setblocking(False)
        return ours

    def start(self, container: str) -> None:
        """Let it run."""
        try:
            with _translated("start a container"):
                self.client().start(container)
        except DriverFailed as error:
            if "select device driver" in str(error):
                raise TierUnavailable(f"{error}; {_GPU_FIX}") from error
            raise

    def wait(self, container: str) -> int:
        """Block until it has ended; the exit code."""
        with _translated("wait for a container"):
            return int(self.client().wait(container, timeout=None)["StatusCode"])

    def kill(self, container: str) -> None:
        """SIGKILL to all of it, paused or not. What has ended already is no error."""
        with contextlib.suppress(NotFound), _translated("kill a container"):
            try:
                self.client().kill(container, "SIGKILL")
            except NotFound:
                return
            except APIError as error:
                if error.status_code != requests.codes.conflict:
                    raise

    def pause(self, container: str, *, on: bool) -> None:
        """Freeze, or let go on. Idempotent; nothing to do for what has ended."""
        with _translated("pause a container"):
            try:
                (self.client().pause if on else self.client().unpause)(container)
            except NotFound:
                return
            except APIError as error:  # already so, or not running
                if error.status_code not in (requests.codes.conflict, requests.codes.server_error):
                    raise
                if error.status_code == requests.codes.server_error and "is not" not in str(error.explanation):
                    raise

    def oom_killed(self, container: str) -> bool:
        """Whether the kernel killed something in it for memory, as far as the engine has heard."""
        with _translated("inspect a container"):
            return bool(self.client().inspect_container(container)["State"]["OOMKilled"])

    def remove(self, container: str, *, paused: bool = False) -> None:
        """Kill and delete it, with its anonymous volumes. Idempotent. ``paused`` if it may be: runsc kills no such."""
        if paused:
            self.pause(container, on=False)
        with _translated("remove a container"):
            try:
                self.client().remove_container(container, v=True, force=True)
            except NotFound:
                return
            except APIError as error:  # somebody else is at it
                if error.status_code != requests.codes.conflict:
                    raise

    def owned(self, owner: str) -> list[tuple[str, str, bool]]:
        """``(id, the box's id, paused)`` of every container labelled with ``owner``, running or not."""
        with _translated("list containers"):
            found = self.client().containers(all=True, filters={"label": f"{OWNER_LABEL}={owner}"})
        return [
            (str(each["Id"]), str(each["Labels"].get(SANDBOX_LABEL, "")), each["State"] == "paused") for each in found
        ]

    # --- the engine itself, and its images

    def info(self) -> Mapping[str, Any]:
        """What the engine says of itself."""
        with _translated("ask the engine about itself"):
            found: Mapping[str, Any] = self.client().info()
            return found

    def image_id(self, reference: str) -> str | None:
        """The digest behind a name; ``None`` if there is no such image."""
        with _translated("inspect an image"):
            try:
                return str(self.client().inspect_image(reference)["Id"])
            except ImageNotFound:
                return None

    def import_root(self, archive: bytes | Path, name: str, changes: Sequence[str] = ()) -> str:
        """An image of one layer from a tar archive of a root file system; its digest."""
        with _translated("import an image"):
            repository, _, tag = name.rpartition(":")
            given = {"repository": repository, "tag": tag, "changes": list(changes) or None}
            if isinstance(archive, bytes):
                self.client().import_image_from_data(archive, **given)
            else:
                self.client().import_image_from_file(str(archive), **given)
        digest = self.image_id(name)
        if digest is None:
            raise DriverFailed(f"the Docker Engine imported no image {name}; its log has the reason")
        return digest

    def image_config(self, reference: str) -> Mapping[str, Any]:
        """What the image says of how to run it."""
        with _translated("inspect an image"):
            config: Mapping[str, Any] = self.client().inspect_image(reference).get("Config") or {}
        return config

    def build(
        self, context: str, *, dockerfile: str, arguments: Mapping[str, str], network: str | None
    ) -> Iterator[Mapping[str, Any]]:
        """Build a Dockerfile without a name; the engine's report, as it comes."""
        with _translated("build an image"):
            yield from self.client().build(
                path=context,
                dockerfile=dockerfile,
                buildargs=dict(arguments),
                network_mode=network,
                rm=True,
                forcerm=True,
                decode=True,
                timeout=None,
                use_config_proxy=False,
            )

    def load(self, archive: Path) -> Iterator[Mapping[str, Any]]:
        """Load a docker archive; the engine's report, as it comes."""
        with _translated("load an image"), archive.open("rb") as file:
            yield from self.client().load_image(file, quiet=True)

    @contextmanager
    def exported(self, image: str) -> Iterator[IO[bytes]]:
        """The image's whole file system as a tar stream."""
        with _translated("export an image"):
            made = self.create({"Image": image, "Entrypoint": [], "Cmd": ["none"], "Labels": {}}, "")
            try:
                chunks = self.client().export(made, chunk_size=_CHUNK)
                with io.BufferedReader(_Chunks(chunks), _CHUNK) as stream:
                    yield stream
            finally:
                self.remove(made)

    def tag(self, image: str, name: str) -> None:
        """Give it one more name."""
        repository, _, tag = name.rpartition(":")
        with _translated("name an image"):
            self.client().tag(image, repository, tag)

    def untag(self, name: str) -> None:
        """Take a name; the image goes with its last one, once no container runs it. Idempotent."""
        with _translated("remove an image"), contextlib.suppress(ImageNotFound):
            self.client().remove_image(name, force=True)

    def images(self, repositories: str) -> list[Mapping[str, Any]]:
        """The images whose repository matches a pattern."""
        with _translated("list images"):
            found: list[Mapping[str, Any]] = self.client().images(filters={"reference": repositories})
            return found

    # --- events

    def listen(self, owner: str, images_changed: Callable[[], None]) -> None:
        """Begin to listen, once; ``images_changed`` is called from the listening thread."""
        if self._listener is None:
            arguments = (owner, images_changed)
            self._listener = threading.Thread(target=self._hear, args=arguments, name="docker events", daemon=True)
            self._listener.start()

    @contextmanager
    def on_oom(self, container: str, heard: Callable[[], None]) -> Iterator[None]:
        """``heard`` is called, from the listening thread, when the kernel kills for memory in ``container``."""
        self._on_oom[container] = heard
        try:
            yield
        finally:
            del self._on_oom[container]

    def _hear(self, owner: str, images_changed: Callable[[], None]) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(DriverFailed, DockerException, requests.RequestException, OSError, ValueError):
                # Without a filter by label, which would hide events of images.
                filters = {"event": ["oom", "tag", "untag", "import", "load", "delete"]}
                self._stream = self.client().events(decode=True, filters=filters)
                images_changed()  # whatever happened unheard
                for event in self._stream:
                    if event.get("Type") == "image":
                        images_changed()
                    elif event.get("Action") == "oom" and (heard := self._on_oom.get(event["Actor"]["ID"])):
                        heard()
            self._closed.wait(_RECONNECT_SECONDS)

    def close(self) -> None:
        """End the listening and the connections. Idempotent."""
        self._closed.set()
        with contextlib.suppress(DockerException, requests.RequestException, OSError, AttributeError):
            if self._stream is not None:
                self._stream.close()
        if self._listener is not None:
            self._listener.join(_RECONNECT_SECONDS)
        if self._client is not None:
            self._client.close()


class _Chunks(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._left = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        size = min(len(into), len(self._left))
        into[:size], self._left = self._left[:size], self._left[size:]
        return size


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (NotFound, APIError) as error:
        raise DriverFailed(f"the Docker Engine could not {what}: {error.explanation or error}") from error
    except (DockerException, requests.RequestException, OSError) as error:
        raise DriverFailed(f"the Docker Engine could not {what}: {_cause(error)}; is it running?") from error


def _cause(error: BaseException) -> str:
    """The innermost reason: what the layers around it add says nothing."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return str(error)[:200]
