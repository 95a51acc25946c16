"""OCI archives as docker archives, which every engine loads: the older ones know no other."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MOST_JSON_BYTES = 8 * 1024 * 1024
_CHUNK = 1024 * 1024
_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")


def as_docker_archive(archive: Path, folder: Path) -> Path:
    """``archive`` itself if it is a docker archive, else one made in ``folder`` from its OCI layout.

    Blobs are checked against their digests. ``ValueError`` for what is neither, or holds not exactly one image.
    """
    with tarfile.open(archive) as tar:
        members = {member.name.removeprefix("./"): member for member in tar if member.isreg()}
        if "manifest.json" in members:
            return archive
        if "index.json" not in members:
            raise ValueError("it has neither manifest.json nor index.json")
        layout = _Layout(tar, members)
        manifest = layout.only_image()
        made = folder / "docker.tar"
        with tarfile.open(made, "w") as target:
            config = layout.copy(manifest["config"], target, "config.json")
            layers = [
                layout.copy(layer, target, f"{number}/layer.tar") for number, layer in enumerate(manifest["layers"])
            ]
            entry = [{"Config": config, "RepoTags": None, "Layers": layers}]
            _add(target, "manifest.json", json.dumps(entry).encode())
    return made


class _Layout:
    """The blobs of an OCI layout in a tar file."""

    def __init__(self, tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo]) -> None:
        self._tar, self._members = tar, members

    def only_image(self) -> Mapping[str, Any]:
        """The one manifest that the index leads to."""
        index = self._parsed("index.json")
        while True:
            entries = [one for one in index["manifests"] if one.get("platform", {}).get("os") != "unknown"]
            if len(entries) != 1:
                raise ValueError(f"it holds {len(entries)} images; save one, of one platform")
            found: Mapping[str, Any] = self._parsed(self._blob(entries[0]), entries[0]["digest"])
            if entries[0].get("mediaType") not in _INDEXES:
                return found
            index = found

    def copy(self, descriptor: Mapping[str, Any], target: tarfile.TarFile, name: str) -> str:
        """Add a blob to ``target`` as ``name``, checked."""
        if "zstd" in str(descriptor.get("mediaType", "")):
            raise ValueError("a layer is compressed with zstd, which engines before 23 cannot read; save it with gzip")
        member = self._members[self._blob(descriptor)]
        seen = hashlib.sha256()
        source = self._tar.extractfile(member)
        while source is not None and (data := source.read(_CHUNK)):
            seen.update(data)
        _expect(seen.hexdigest(), descriptor["digest"])
        info = tarfile.TarInfo(name)
        info.size = member.size
        target.addfile(info, self._tar.extractfile(member))
        return name

    def _parsed(self, name: str, digest: str | None = None) -> Any:
        member = self._members[name]
        if member.size > _MOST_JSON_BYTES:
            raise ValueError(f"{name} is above {_MOST_JSON_BYTES} bytes")
        source = self._tar.extractfile(member)
        data = b"" if source is None else source.read()
        if digest is not None:
            _expect(hashlib.sha256(data).hexdigest(), digest)
        return json.loads(data)

    @staticmethod
    def _blob(descriptor: Mapping[str, Any]) -> str:
        found = _DIGEST.fullmatch(str(descriptor["digest"]))
        if found is None:
            raise ValueError(f"the digest {descriptor['digest']!r} is not sha256")
        return f"blobs/sha256/{found[1]}"


def _expect(seen: str, digest: str) -> None:
    if f"sha256:{seen}" != digest:
        raise ValueError(f"a blob is sha256:{seen}, not {digest}: the archive is damaged")


def _add(target: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    target.addfile(info, io.BytesIO(data))
