"""The child process that compiles one module ahead of time: ``argv`` is source, SHA-256, target, ``fuel`` or not."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from pathlib import Path

import wasmtime

from sandboxes.wasm.engine import engine


def main() -> None:
    """Verify the source, compile, and put the result in place in one step, readable by its owner only."""
    source, digest, target = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    code = source.read_bytes()
    if hashlib.sha256(code).hexdigest() != digest:
        sys.exit(f"{source} is not the module this release was made for; reinstall its package")
    compiled = wasmtime.Module(engine(fuel=sys.argv[4] == "fuel"), code).serialize()
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(compiled)
        file.flush()
        os.fsync(fd)
    fresh.replace(target)
