"""What Stockade costs while nothing runs: memory of every process of `stockade up`, and what `--version` imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.acceptance.cluster import wait_for
from tests.acceptance.standalone import Standalone

PROMISED_IDLE_BYTES = 300 * 1000 * 1000
MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ (\S+ \d+) *(.*)$")
OWN = re.compile(r"^Pss_Anon: +(\d+) kB$", re.MULTILINE)
FIELD = re.compile(r"^(Rss|Anonymous): +(\d+) kB$")


def own_and_shared(pid: int) -> tuple[int, dict[str, int]]:
    """Bytes that are no file's (a fork's are counted by halves), and resident bytes of each file it has mapped."""
    folder, files, place = Path(f"/proc/{pid}"), defaultdict[str, int](int), ""
    try:
        mappings = (folder / "smaps").read_text().splitlines()
        together = (folder / "smaps_rollup").read_text()
    except PermissionError:  # bubblewrap shows them to root only; its sizes are public
        resident, of_files = (folder / "statm").read_text().split()[1:3]
        page = os.sysconf("SC_PAGE_SIZE")
        return (int(resident) - int(of_files)) * page, {f"of {pid}": int(of_files) * page}
    for line in mappings:
        if found := MAPPING.match(line):
            place = found[1] if found[1] != "00:00 0" else ""
        elif place and (field := FIELD.match(line)):
            count = int(field[2]) * 1024
            files[place] += count if field[1] == "Rss" else -count
    return sum(int(count) * 1024 for count in OWN.findall(together)), files


def resident_bytes(processes: Sequence[psutil.Process]) -> tuple[int, str]:
    """What they hold together, and who holds it. A file that several map counts once, however many others on this
    machine map it too, which would make the kernel's proportional size smaller by luck."""
    shared: dict[str, int] = {}
    lines, total = [], 0
    for process in processes:
        own, files = own_and_shared(process.pid)
        total += own
        for place, count in files.items():
            shared[place] = max(shared.get(place, 0), count)
        what = " ".join(process.cmdline())[:100].replace("\n", " ")
        lines.append(f"{own / 1e6:7.1f} MB own, {sum(files.values()) / 1e6:6.1f} MB of files  {process.pid} {what}")
    files_bytes = sum(shared.values())
    return total + files_bytes, "\n".join([*lines, f"{files_bytes / 1e6:7.1f} MB of files, each once"])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/PID/smaps")
def test_idle_control_plane_and_node_stay_below_300_megabytes(tmp_path: Path, image_cache: Path) -> None:
    with Standalone(tmp_path, image_cache) as up:
        done = up.command("run", str(Path(__file__).parents[2] / "examples" / "hello.json"), "--wait")
        assert done.returncode == 0, done.stderr

        def pool_is_full() -> bool:
            workers = [line for line in up.command_lines() if "sandboxes.wasm.worker" in line]
            return sum("/bwrap" not in line for line in workers) >= 2

        wait_for(pool_is_full, "the node's prewarmed workers")
        total, table = resident_bytes([psutil.Process(up.pid), *up.descendants()])
        print(f"\nidle after one run: {total / 1e6:.0f} MB\n{table}")
        assert total <= PROMISED_IDLE_BYTES, f"{total / 1e6:.0f} MB\n{table}"


def test_version_imports_nothing_heavy() -> None:
    heavy = ("typer", "rich", "pydantic", "httpx2", "asyncio", "ssl", "importlib.metadata", "ctypes")
    code = (
        "import sys; from stockade.cli.main import main; main(['--version']); import json;"
        f"print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    version, imported = done.stdout.splitlines()
    assert version.startswith("stockade ") and json.loads(imported) == []
