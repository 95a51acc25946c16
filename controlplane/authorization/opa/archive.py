"""A bundle in OPA's format: a gzipped tar of its manifest, rules and data, the same bytes for the same revision."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

from controlplane.authorization.bundle import ROOTS, Bundle

NAME = "stockade"
"""What OPA calls the bundle, in its configuration and in the provenance of every answer."""


_BATCH = Path(__file__).with_name("server") / "batch.rego"


def archive(bundle: Bundle) -> bytes:
    """The tar.gz that OPA loads. Blocking.

    It owns its roots, so that nothing else in that OPA decides with it."""
    manifest = {"revision": bundle.revision, "roots": sorted([*ROOTS, "stockade"]), "rego_version": 1}
    files = {".manifest": json.dumps(manifest), "data.json": bundle.data_json, **bundle.files}
    files["stockade/batch.rego"] = _BATCH.read_text("utf-8")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, text in files.items():
            content = text.encode()
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)
