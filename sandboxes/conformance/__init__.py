"""The public suite: every driver, and the fake, passes it.

    from sandboxes import conformance
    for check in conformance.CHECKS:
        if check.needs <= driver.features:
            await conformance.run_check(driver, check)
    conformance.absent(driver)  # what the tier cannot do, with the reason

    check.py      what a check is, the bench it runs on
    running.py    exit codes, streams, stdin           limits.py     time, memory, output, files, processes
    isolation.py  what a guest must not see or do      files.py      inputs and outputs
    results.py    strict JSON                          channel.py    tools, progress, hostile frames
    control.py    cancel, freeze, reap, destruction   network.py   the one way out, where it was granted

Bounds. ``jail`` in strength ``full``: the kernel never lets a guest past memory, pids or disk. ``jail`` in strength
``user`` looks every 50 ms: resident memory and files may pass their limit for that long, then the guest is killed; one
process reserves at most twice its memory limit, one file never passes ``file_bytes``, processes never pass ``pids``.
``wasm``: memory is bounded by the engine, files by a look as in ``user``. The suite allows twice ``disk_bytes`` where
it is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

from sandboxes.conformance import channel, control, files, isolation, limits, network, results, running
from sandboxes.conformance.check import Bench, Check, Nonconforming
from sandboxes.driver import Driver, Feature
from sandboxes.testing import Play, program_key

CHECKS: tuple[Check, ...] = (
    *running.CHECKS,
    *limits.CHECKS,
    *isolation.CHECKS,
    *files.CHECKS,
    *results.CHECKS,
    *channel.CHECKS,
    *control.CHECKS,
    *network.CHECKS,
)

_REASONS: Mapping[Feature, str] = {
    Feature.PYTHON: "runs no Python",
    Feature.SHELL: "has no shell",
    Feature.ARGV: "starts no programs",
    Feature.SUBPROCESSES: "has one process and no fork or signals",
    Feature.PROC: "has no /proc",
    Feature.FUEL: "counts no instructions",
    Feature.FREEZE: "cannot stop a guest and let it go on",
    Feature.SCIENCE: "has no numpy and pandas",
    Feature.FOLDER_INPUTS: "copies its inputs, so they are files",
    Feature.STREAMED_STDIN: "reads stdin from a file that is written before the start",
    Feature.SYMLINKS: "its guests cannot make links or pipes in /outputs",
    Feature.NETWORK: "its guests have no sockets",
    Feature.GPU: "hands no GPU to its guests",
}


async def run_check(driver: Driver, check: Check) -> None:
    """Run one check. Raises ``Nonconforming``, with what was promised and what came."""
    if missing := check.needs - driver.features:
        raise Nonconforming(f"{check.name} needs {sorted(missing)}, which the driver does not declare")
    with Bench(driver, check) as bench:
        await check.verify(bench)


def absent(driver: Driver) -> list[tuple[Check, str]]:
    """The checks this driver cannot be asked, each with the reason."""
    return [
        (check, f"{driver.tier} {'; '.join(_REASONS[feature] for feature in sorted(check.needs - driver.features))}")
        for check in CHECKS
        if not check.needs <= driver.features
    ]


def plays() -> dict[str, Play]:
    """What ``FakeDriver`` plays to pass."""
    return {program_key(part.command): part.play for check in CHECKS for part in check.programs}


__all__ = ["CHECKS", "Bench", "Check", "Nonconforming", "absent", "plays", "run_check"]
