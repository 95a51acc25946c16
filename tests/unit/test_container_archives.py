"""OCI archives become docker archives, and damaged ones are refused."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sandboxes.container.archives import as_docker_archive

LAYER = b"a layer's bytes"
CONFIG = json.dumps({"architecture": "amd64", "os": "linux"}).encode()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(data: bytes, kind: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest(data), "size": len(data), **more}


def manifest(layer_kind: str = "layer.v1.tar+gzip") -> bytes:
    given = {"config": descriptor(CONFIG, "config.v1+json"), "layers": [descriptor(LAYER, layer_kind)]}
    return json.dumps({"schemaVersion": 2, **given}).encode()


def written(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def oci(path: Path, blobs: list[bytes], entries: list[dict[str, Any]]) -> Path:
    files = {f"blobs/sha256/{digest(blob)[7:]}": blob for blob in blobs}
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return written(path, {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index, **files})


def test_a_docker_archive_is_taken_as_it_is(tmp_path: Path) -> None:
    archive = written(tmp_path / "a.tar", {"manifest.json": b"[]"})
    assert as_docker_archive(archive, tmp_path) == archive


@pytest.mark.parametrize("nested", [False, True])
def test_an_oci_archive_is_rewritten(tmp_path: Path, nested: bool) -> None:
    blobs = [CONFIG, LAYER, manifest()]
    entry = descriptor(manifest(), "manifest.v1+json")
    if nested:
        unknown = {**entry, "digest": digest(b"attestation"), "platform": {"os": "unknown"}}
        inner = json.dumps({"manifests": [entry, unknown]}).encode()
        blobs.append(inner)
        entry = descriptor(inner, "index.v1+json")
    made = as_docker_archive(oci(tmp_path / "a.tar", blobs, [entry]), tmp_path)
    with tarfile.open(made) as tar:
        held = {member.name: tar.extractfile(member) for member in tar}
        read = {name: file.read() for name, file in held.items() if file is not None}
    (listed,) = json.loads(read["manifest.json"])
    assert read[listed["Config"]] == CONFIG and [read[name] for name in listed["Layers"]] == [LAYER]


def test_a_blob_that_is_not_its_digest_is_refused(tmp_path: Path) -> None:
    archive = oci(tmp_path / "a.tar", [CONFIG, manifest()], [descriptor(manifest(), "manifest.v1+json")])
    with tarfile.open(archive, "a") as tar:
        info = tarfile.TarInfo(f"blobs/sha256/{digest(LAYER)[7:]}")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"other"))
    with pytest.raises(ValueError, match="damaged"):
        as_docker_archive(archive, tmp_path)


@pytest.mark.parametrize(
    ("blobs", "entries", "says"),
    [
        ([], [], "0 images"),
        ([manifest()], [descriptor(manifest(), "manifest.v1+json")] * 2, "2 images"),
        ([], [{"mediaType": "x", "digest": "sha256:../../etc/passwd"}], "not sha256"),
        (
            [CONFIG, LAYER, manifest("layer.v1.tar+zstd")],
            [descriptor(manifest("layer.v1.tar+zstd"), "manifest.v1+json")],
            "zstd",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused(
    tmp_path: Path, blobs: list[bytes], entries: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        as_docker_archive(oci(tmp_path / "a.tar", blobs, entries), tmp_path)


def test_a_tar_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither manifest\.json nor index\.json"):
        as_docker_archive(written(tmp_path / "a.tar", {"etc/passwd": b""}), tmp_path)
