"""Time, memory, output, files, processes: every limit is enforced from outside."""

from __future__ import annotations

import dataclasses

from sandboxes.conformance.check import LIMITS, Bench, Check, Outcome, after, ended, expect, python
from sandboxes.driver import Feature
from sandboxes.execution import ExitReason
from sandboxes.spec import MIB, Strength, Tier
from sandboxes.testing import Play

_GRACE_SECONDS = 1.0
_SHORT = dataclasses.replace(LIMITS, wall_seconds=1.0)
_SMALL_OUTPUT = dataclasses.replace(LIMITS, output_bytes=MIB)
_FEW = dataclasses.replace(LIMITS, pids=24, open_files=48)
_LOOK = 2.0
"""How far files may pass their limit between two looks, as a factor: see the package's docstring."""
_SPARSE = "for i in range(3):\n    with open(f'/outputs/f{i}', 'wb') as f: f.truncate(24 << 20)\n'kept'"


def _on_time(outcome: Outcome) -> bool:
    return outcome.end.reason is ExitReason.TIMEOUT and outcome.end.wall_seconds < _SHORT.wall_seconds + _GRACE_SECONDS


def _out_of_memory(outcome: Outcome) -> bool:
    """Killed for it, or refused it: a tier that bounds by refusing gives the guest a MemoryError."""
    refused = outcome.end.reason is ExitReason.EXITED and outcome.end.code != 0 and b"MemoryError" in outcome.stderr
    return outcome.end.reason is ExitReason.OOM or refused


async def _files_stay_bounded(bench: Bench) -> None:
    async with bench.open() as sandbox:
        outcome = await bench.run(sandbox)
        files = await sandbox.outputs()
    kernel_bound = bench.driver.tier is not Tier.WASM and bench.driver.strength is Strength.FULL
    look = 1.0 if kernel_bound else _LOOK
    size = sum(file.size_bytes for file in files)
    refused = ended(outcome, 1) and b"Error" in outcome.stderr
    expect(outcome.end.reason is ExitReason.DISK or refused, outcome)
    expect(size <= LIMITS.disk_bytes * look, (size, len(files)))
    expect(all(file.size_bytes <= LIMITS.file_bytes for file in files), files)


async def _many_files(bench: Bench) -> None:
    async with bench.open() as sandbox:
        outcome = await bench.run(sandbox)
        files = await sandbox.outputs()
    refused = ended(outcome, 1) and b"Error" in outcome.stderr
    expect(outcome.end.reason is ExitReason.DISK or refused, outcome)
    expect(len(files) < 100_000, len(files))


CHECKS = (
    Check(
        name="infinite_loop_is_a_timeout",
        limits=_SHORT,
        programs=python("while True: pass", Play(hangs=True)),
        verify=after(_on_time),
    ),
    Check(
        name="sleep_past_the_wall_time_is_a_timeout",
        limits=_SHORT,
        programs=python("import time; time.sleep(500)", Play(hangs=True)),
        verify=after(_on_time),
    ),
    Check(
        name="output_flood_is_cut_drained_and_noted",
        limits=_SMALL_OUTPUT,
        programs=python(
            "import sys\nfor _ in range(320): sys.stdout.write('y' * 65536)\nsys.exit(7)",
            Play(stdout=b"y" * 320 * 65536, code=7),
        ),
        verify=after(lambda o: ended(o, 7) and o.end.output_truncated and o.stdout == b"y" * MIB),
    ),
    Check(
        name="output_below_the_limit_is_not_truncated",
        limits=_SMALL_OUTPUT,
        programs=python("import sys; sys.stdout.write('z' * 1048576)", Play(stdout=b"z" * MIB)),
        verify=after(lambda o: ended(o) and not o.end.output_truncated and o.stdout == b"z" * MIB),
    ),
    Check(
        name="memory_bomb",
        programs=python(
            "import time\nkept = []\nwhile True:\n    kept.append(bytearray(b'x') * (8 << 20))\n    time.sleep(0.01)",
            Play(reason=ExitReason.OOM),
        ),
        verify=after(_out_of_memory),
    ),
    Check(
        name="memory_in_one_piece",
        programs=python("x = bytearray(b'x') * (1 << 30)", Play(reason=ExitReason.OOM)),
        verify=after(_out_of_memory),
    ),
    Check(
        name="memory_bomb_of_several_processes",
        needs=frozenset({Feature.PYTHON, Feature.SUBPROCESSES}),
        programs=python(
            "import os, time\nfor _ in range(7):\n    if os.fork() == 0: break\n"
            "kept = bytearray(b'x') * (60 << 20)\ntime.sleep(20)",
            Play(reason=ExitReason.OOM),
        ),
        verify=after(lambda o: o.end.reason is ExitReason.OOM and o.end.wall_seconds < 15),
    ),
    Check(
        name="fork_bomb",
        needs=frozenset({Feature.PYTHON, Feature.SUBPROCESSES}),
        limits=_FEW,
        programs=python(
            "import os, time\nmade = 0\ntry:\n    while made < 500:\n        if os.fork() == 0:\n"
            "            time.sleep(100)\n        made += 1\nexcept OSError:\n    pass\nmade",
            Play(result=20, has_result=True),
        ),
        verify=after(lambda o: ended(o) and 1 <= o.end.result <= _FEW.pids),
    ),
    Check(
        name="exponential_fork_bomb_ends_with_the_wall_time",
        needs=frozenset({Feature.SHELL, Feature.SUBPROCESSES}),
        limits=dataclasses.replace(_FEW, wall_seconds=1.0),
        programs=python("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", Play(hangs=True)),
        verify=after(lambda o: o.end.reason is ExitReason.TIMEOUT and o.end.wall_seconds < 4),
    ),
    Check(
        name="one_gigabyte_file",
        programs=python(
            "with open('/outputs/big', 'wb', buffering=0) as f:\n    for _ in range(1024):\n"
            "        left = 1 << 20\n        while left: left -= f.write(b'x' * left)",
            Play(reason=ExitReason.DISK),
        ),
        verify=_files_stay_bounded,
    ),
    Check(
        name="many_files_fill_the_disk",
        programs=python(
            "import time\nfor i in range(100):\n    with open(f'/outputs/{i}', 'wb') as f: f.write(b'x' * (8 << 20))\n"
            "    time.sleep(0.05)",
            Play(reason=ExitReason.DISK),
        ),
        verify=_files_stay_bounded,
    ),
    Check(
        name="sparse_files_left_in_outputs_count_in_full",
        programs=python(_SPARSE, Play(files={f"f{i}": bytes(24 * MIB) for i in range(3)})),
        verify=after(lambda o: o.end.reason is ExitReason.DISK and not o.end.has_result),
    ),
    Check(
        name="many_inodes",
        programs=python(
            "for i in range(200_000): open(f'/outputs/{i}', 'w').close()\nimport time; time.sleep(0.5)",
            Play(reason=ExitReason.DISK),
        ),
        verify=_many_files,
    ),
    Check(
        name="open_files",
        limits=_FEW,
        programs=python(
            "kept = []\ntry:\n    for _ in range(2000): kept.append(open('/tmp/one', 'w'))\nexcept OSError: pass\n"
            "count = len(kept)\ndel kept\ncount",
            Play(result=40, has_result=True),
        ),
        verify=after(lambda o: ended(o) and 1 <= o.end.result <= _FEW.open_files),
    ),
)
