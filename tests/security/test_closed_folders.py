"""A node keeps its files to itself (umask 077), and its guests have what they need all the same."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxes.driver import Driver
from sandboxes.errors import DriverFailed
from sandboxes.execution import Command, Exited
from sandboxes.jail.driver import JailDriver
from sandboxes.spec import Mount, SandboxSpec, Strength
from sandboxes.wasm.driver import WasmDriver

GUEST = """
import os
os.mkdir('/outputs/sub')
with open('/outputs/sub/o.txt', 'w') as f: f.write('guest')
[open('/inputs/data').read(), os.listdir('/outputs')]
"""
MAKERS: dict[str, Callable[[Path], Driver]] = {
    "wasm": lambda folder: WasmDriver(cache_dir=folder / "cache", state_dir=folder, pool_size=0),
    "jail-full": lambda folder: JailDriver(folder / "jail", Strength.FULL),
    "jail-user": lambda folder: JailDriver(folder / "jail", Strength.USER),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """An open folder, as one that was there before; what is made in it is made under the daemons' umask."""
    made = Path(tempfile.mkdtemp(prefix="stockade-test-"))
    made.chmod(0o755)
    before = os.umask(0o077)
    yield made
    os.umask(before)
    shutil.rmtree(made)


def _modes_on_the_way(folder: Path) -> list[int]:
    """Of the folders that lead to what the guest wrote, from the driver's own inwards."""
    file = next(folder.rglob("o.txt"))
    places = [place for place in file.parents if place.is_relative_to(folder) and place != folder]
    return [place.stat().st_mode for place in reversed(places)]


@pytest.mark.parametrize("tier", MAKERS)
@pytest.mark.anyio
async def test_guests_work_in_folders_that_are_closed_to_others(folder: Path, tier: str) -> None:
    source = folder / "data"
    source.write_text("input")
    try:
        driver = MAKERS[tier](folder)
    except DriverFailed as error:
        pytest.skip(str(error))
    if reason := await driver.probe():
        await driver.close()
        pytest.skip(reason)
    spec = SandboxSpec(tier=driver.tier, mounts=(Mount(name="data", source=source),))
    async with driver.open(spec, "mine") as sandbox:
        command = Command(language="python", source=GUEST)
        ends = [event async for event in sandbox.execute(command) if isinstance(event, Exited)]
        assert ends[0].result == ["input", ["sub"]], ends
        assert await sandbox.read_output("sub/o.txt") == b"guest"
        modes = _modes_on_the_way(folder)
        assert not modes[0] & stat.S_IROTH, modes
        if tier != "jail-user" or os.geteuid() != 0:  # there bubblewrap passes as somebody else
            assert not all(mode & stat.S_IXOTH for mode in modes), modes
    await driver.close()


@pytest.mark.anyio
async def test_a_jail_has_the_usual_umask_and_not_the_nodes(folder: Path) -> None:
    driver = JailDriver(folder / "jail")
    if reason := await driver.probe():
        pytest.skip(reason)
    for language in ("python", "shell"):
        program = "import os\nos.umask(0)" if language == "python" else "umask > /outputs/output.json"
        async with driver.open(SandboxSpec(tier=driver.tier), f"umask-{language}") as sandbox:
            command = Command(language=language, source=program)
            ends = [event async for event in sandbox.execute(command) if isinstance(event, Exited)]
            if language == "python":
                assert ends[0].result == 0o022
            else:
                assert await sandbox.read_output("output.json") == b"0022\n"
    await driver.close()


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("controlplane.__main__", "main()"),
        ("dataplane.cli", "start(None)"),
        ("stockade.cli.supervisor", "main('{')"),
    ],
)
def test_daemons_close_what_they_make_before_they_make_anything(module: str, call: str) -> None:
    program = (
        f"import os, sys\nimport {module} as daemon\nos.umask(0o022)\nsys.argv[1:] = ['--help']\n"
        f"try: daemon.{call}\nexcept BaseException: pass\nprint('umask', oct(os.umask(0)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("umask 0o77\n"), done.stdout[-300:]
