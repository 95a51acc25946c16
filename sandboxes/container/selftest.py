"""The smallest image there is, for the start probe: one program of some 180 bytes, made here, that says ``ready``.

A host without any image can so be told from one whose engine starts no container under our options.
"""

from __future__ import annotations

import io
import platform
import struct
import tarfile
from collections.abc import Sequence

from sandboxes.container.engine import Engine
from sandboxes.errors import TierUnavailable

PROGRAM = "/ready"
SAYS = b"ready\n"
_IMAGE = "stockade-selftest:1"
_BASE = 0x400000
_HEADERS = 64 + 56
_MACHINES = {"x86_64": 62, "aarch64": 183, "arm64": 183}


def _x86_64() -> bytes:
    code = bytes.fromhex("bf01000000 488d3514000000 ba06000000 b801000000 0f05 31ff b83c000000 0f05")
    # The distance in lea counts from the next instruction, at 12, to the text, right behind the code.
    return code[:8] + struct.pack("<i", len(code) - 12) + code[12:]


def _aarch64() -> bytes:
    def mov(register: int, value: int) -> int:
        return 0xD2800000 | value << 5 | register

    call = 0xD4000001
    text_at = 8 * 4 - 1 * 4  # from adr, the second of eight instructions, to the text behind the code
    adr = 0x10000001 | (text_at >> 2) << 5
    words: Sequence[int] = (mov(0, 1), adr, mov(2, len(SAYS)), mov(8, 64), call, mov(0, 0), mov(8, 93), call)
    return struct.pack(f"<{len(words)}I", *words)


def program(machine: str = platform.machine()) -> bytes:
    """A static ELF executable: write ``SAYS`` to standard output, end with 0. ``KeyError`` for other machines."""
    number = _MACHINES[machine]
    body = (_x86_64() if number == _MACHINES["x86_64"] else _aarch64()) + SAYS
    size = _HEADERS + len(body)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, number, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + body


def ensure(engine: Engine) -> str:
    """The image's digest; made if the engine has it not. Blocks. Raises ``DriverFailed``."""
    if (known := engine.image_id(_IMAGE)) is not None:
        return known
    try:
        data = program()
    except KeyError:
        machine = platform.machine()
        raise TierUnavailable(f"the tier container knows x86_64 and aarch64, not {machine}; use wasm") from None
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo(PROGRAM.lstrip("/"))
        member.size, member.mode = len(data), 0o755
        tar.addfile(member, io.BytesIO(data))
    return engine.import_root(archive.getvalue(), _IMAGE)
